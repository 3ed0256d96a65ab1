{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}

{{- define "weft.labels" -}}
app.kubernetes.io/name: weft
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- /* Never changes: a DaemonSet's selector cannot. */ -}}
{{- define "weft.selector" -}}
app.kubernetes.io/name: weft
{{- end }}

{{- define "weft.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* The agent's flags; here and nowhere else. */ -}}
{{- define "weft.args" -}}
- --store=kube
- --node-name=$(NODE_NAME)
- --net-conf=/etc/weft/net-conf.json
- --listen=127.0.0.1:{{ .Values.agent.healthPort }}
- --log-level={{ .Values.agent.logLevel }}
{{- if .Values.flannelCompat }}
- --flannel-compat
# As flannel's own manifest has it.
- --ip-masq
{{- end }}
{{- if not .Values.networkPolicy.enabled }}
- --network-policy=false
{{- else }}
{{- if ne .Values.networkPolicy.onAgentDown "deny" }}
- --policy-agent-down={{ .Values.networkPolicy.onAgentDown }}
{{- end }}
{{- if not .Values.networkPolicy.spoofGuard }}
- --spoof-guard=false
{{- end }}
{{- range .Values.networkPolicy.allowAddresses }}
- --allow-addresses={{ . }}
{{- end }}
{{- end }}
{{- with .Values.agent.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* A family that is not given is the cluster's, but for flannel's rule that
IPv6 needs a switch. */ -}}
{{- define "weft.netConf" -}}
{{- $conf := dict "Backend" .Values.network.backend -}}
{{- if eq .Values.network.ipv4 "none" }}{{ $_ := set $conf "EnableIPv4" false -}}
{{- else if .Values.network.ipv4 }}{{ $_ := set $conf "Network" .Values.network.ipv4 }}{{ end -}}
{{- if eq .Values.network.ipv6 "none" }}{{ $_ := set $conf "EnableIPv6" false -}}
{{- else if .Values.network.ipv6 }}{{ $_ := set $conf "IPv6Network" .Values.network.ipv6 }}{{ $_ := set $conf "EnableIPv6" true }}{{ end -}}
{{- if and (eq .Values.network.ipv4 "none") (or (eq .Values.network.ipv6 "none") (and .Values.flannelCompat (not .Values.network.ipv6))) }}{{ fail "network.ipv4 and network.ipv6 are both switched off: want at least one family" }}{{ end -}}
{{ toPrettyJson $conf }}
{{- end }}

{{- /* Whether agents have to ask the cluster for a network. */ -}}
{{- define "weft.asksCluster" -}}
{{- $six := or .Values.network.ipv6 .Values.flannelCompat -}}
{{- if and .Values.network.fromCluster (not (and .Values.network.ipv4 $six)) }}yes{{ end -}}
{{- end }}

{{- /* What an agent may publish on its Node, and what stands before the names. */ -}}
{{- define "weft.prefix" -}}
{{ if .Values.flannelCompat }}flannel.alpha.coreos.com/{{ else }}weft.dev/{{ end }}
{{- end }}
