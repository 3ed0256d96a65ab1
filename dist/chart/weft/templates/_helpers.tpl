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
{{- with .Values.agent.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* A family that is not given is switched off. flannel's rule is that IPv6
needs a switch and IPv4 is always on; with ours, the networks say it. */ -}}
{{- define "weft.netConf" -}}
{{- $conf := dict "Backend" .Values.network.backend -}}
{{- with .Values.network.ipv4 }}{{ $_ := set $conf "Network" . }}{{ end -}}
{{- with .Values.network.ipv6 }}{{ $_ := set $conf "IPv6Network" . }}{{ $_ := set $conf "EnableIPv6" true }}{{ end -}}
{{- if not .Values.network.ipv4 }}{{ $_ := set $conf "EnableIPv4" false }}{{ end -}}
{{- if not (or .Values.network.ipv4 .Values.network.ipv6) }}{{ fail "network.ipv4 and network.ipv6 are both empty: want the range of at least one family, such as network.ipv4=10.244.0.0/16" }}{{ end -}}
{{ toPrettyJson $conf }}
{{- end }}

{{- /* What an agent may publish on its Node, and what stands before the names. */ -}}
{{- define "weft.prefix" -}}
{{ if .Values.flannelCompat }}flannel.alpha.coreos.com/{{ else }}weft.dev/{{ end }}
{{- end }}
