// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

func parse(t *testing.T, env []string, args ...string) *options {
	t.Helper()
	o, err := parseOptions(append([]string{"--node-name=n1"}, args...), env)
	if err != nil {
		t.Fatalf("%v %v: %v", env, args, err)
	}
	return o
}

func TestDefaultsSuitANewcomer(t *testing.T) {
	o := parse(t, nil)
	for got, want := range map[string]string{
		strings.Join(o.EtcdEndpoints, ","): "http://127.0.0.1:2379",
		o.EtcdPrefix:                       "/weft/network",
		o.SubnetFile:                       "/run/weft/subnet.env",
		o.Socket:                           "/run/weft/weftd.sock",
		o.Listen:                           "127.0.0.1:9469",
		o.CNIConf:                          "/etc/cni/net.d/05-weft.conflist",
		o.StateDir:                         "/var/lib/weft",
	} {
		if got != want {
			t.Errorf("default %q, want %q", got, want)
		}
	}
	if o.EtcdInsecure || o.LeaseTTL != 24*time.Hour || o.RenewMargin != time.Hour {
		t.Errorf("insecure %t, TTL %s, margin %s", o.EtcdInsecure, o.LeaseTTL, o.RenewMargin)
	}
}

func TestFlagsWinOverEnvironment(t *testing.T) {
	env := []string{"WEFTD_ETCD_PREFIX=/env", "WEFTD_IFACE=eth1,eth2", "WEFTD_IFACE_REGEX=^10\\.[0-9]{1,3}", "PATH=/bin"}
	o := parse(t, env, "--etcd-prefix=/flag")
	if o.EtcdPrefix != "/flag" || o.origin["etcd-prefix"] != "flag --etcd-prefix" {
		t.Errorf("prefix %q from %s", o.EtcdPrefix, o.origin["etcd-prefix"])
	}
	if got := strings.Join(o.Ifaces, " "); got != "eth1 eth2" {
		t.Errorf("ifaces %q", got)
	}
	if got := strings.Join(o.IfaceRegexes, " "); got != `^10\.[0-9]{1,3}` {
		t.Errorf("a regular expression with a comma became %q", got)
	}
	if o.origin["iface"] != "environment WEFTD_IFACE" || o.origin["listen"] != "default" {
		t.Errorf("origins %q, %q", o.origin["iface"], o.origin["listen"])
	}
}

// Kubernetes tells every pod of a Service in its namespace by environment
// variables; one that is named like us must not stop the agent.
func TestEnvironmentOfAServiceIsNoSetting(t *testing.T) {
	parse(t, []string{
		"WEFTD_SERVICE_HOST=10.0.0.1", "WEFTD_SERVICE_PORT=9469", "WEFTD_SERVICE_PORT_METRICS=9469",
		"WEFTD_PORT=tcp://10.0.0.1:9469", "WEFTD_PORT_9469_TCP=tcp://10.0.0.1:9469", "WEFTD_PORT_9469_TCP_PROTO=tcp",
		"WEFTD_METRICS_PORT=tcp://10.0.0.1:9469", "WEFTD_METRICS_PORT_9469_TCP_ADDR=10.0.0.1",
	})
}

func TestEmptyListInTheEnvironmentIsNone(t *testing.T) {
	if o := parse(t, []string{"WEFTD_IFACE="}); len(o.Ifaces) != 0 {
		t.Errorf("ifaces %q", o.Ifaces)
	}
	if o := parse(t, []string{"WEFTD_IFACE=eth1, eth2"}); len(o.Ifaces) != 2 || o.Ifaces[1] != "eth2" {
		t.Errorf("ifaces %q", o.Ifaces)
	}
}

// Every error names the value, what is allowed, and where the value came from.
func TestWrongValues(t *testing.T) {
	for name, c := range map[string]struct {
		env, args []string
		want      []string
	}{
		"prefix":            {args: []string{"--etcd-prefix=weft/"}, want: []string{"etcd-prefix", "flag --etcd-prefix", `"weft/"`, "begins with /"}},
		"prefix from env":   {env: []string{"WEFTD_ETCD_PREFIX=x"}, want: []string{"environment WEFTD_ETCD_PREFIX", `"x"`}},
		"no endpoints":      {args: []string{"--etcd-endpoints=,"}, want: []string{"etcd-endpoints", "at least one URL"}},
		"node name":         {args: []string{"--node-name=a b"}, want: []string{"node-name", `"a b"`, "letters"}},
		"short TTL":         {args: []string{"--lease-ttl=1s"}, want: []string{"lease-ttl", `"1s"`, "3s to 8760h"}},
		"margin over TTL":   {args: []string{"--lease-ttl=10m", "--lease-renew-margin=20m"}, want: []string{"lease-renew-margin", "10m0s"}},
		"regex":             {args: []string{"--iface-regex=("}, want: []string{"iface-regex", `"("`, "regular expression"}},
		"public ip":         {args: []string{"--public-ip=fd00::1"}, want: []string{"public-ip", `"fd00::1"`, "IPv4"}},
		"public ipv6":       {env: []string{"WEFTD_PUBLIC_IPV6=::1"}, want: []string{"environment WEFTD_PUBLIC_IPV6", "IPv6"}},
		"can reach":         {args: []string{"--iface-can-reach=host"}, want: []string{"iface-can-reach", `"host"`, "IP address"}},
		"log level":         {args: []string{"--log-level=loud"}, want: []string{"log-level", `"loud"`, "error, warning, info or debug"}},
		"bad bool in env":   {env: []string{"WEFTD_ONCE=perhaps"}, want: []string{"environment WEFTD_ONCE", `"perhaps"`}},
		"unknown env":       {env: []string{"WEFTD_ETC_PREFIX=/x"}, want: []string{"WEFTD_ETC_PREFIX", "no such setting"}},
		"unknown flag":      {args: []string{"--etcd-endpoint=x"}, want: []string{"etcd-endpoint"}},
		"relative socket":   {args: []string{"--socket=rel.sock"}, want: []string{"socket", "rel.sock", "absolute"}},
		"no state dir":      {args: []string{"--state-dir="}, want: []string{"state-dir", "absolute"}},
		"relative file":     {args: []string{"--subnet-file=rel.env"}, want: []string{"subnet-file", "rel.env", "absolute"}},
		"relative conf":     {args: []string{"--cni-conf=rel"}, want: []string{"cni-conf", "rel", "absolute"}},
		"listen nowhere":    {args: []string{"--listen=foo"}, want: []string{"listen", "foo", "HOST:PORT"}},
		"listen too high":   {args: []string{"--listen=:65536"}, want: []string{"listen", ":65536", "65535"}},
		"public with zone":  {args: []string{"--public-ipv6=fd77::1%eth0"}, want: []string{"public-ipv6", "fd77::1%eth0"}},
		"long socket":       {args: []string{"--socket=/" + strings.Repeat("s", 107)}, want: []string{"socket", "107 bytes"}},
		"guard":             {args: []string{"--ingress-guard=on"}, want: []string{"ingress-guard", `"on"`, "bind, peers or off"}},
		"hold":              {env: []string{"WEFTD_MASS_REMOVAL_HOLD=25h"}, want: []string{"environment WEFTD_MASS_REMOVAL_HOLD", "25h", "0 (off) to 24h"}},
		"negative hold":     {args: []string{"--mass-removal-hold=-1s"}, want: []string{"mass-removal-hold", "-1s"}},
		"allow":             {args: []string{"--allow-addresses=192.0.2.0/28,192.0.2.1/28"}, want: []string{"allow-addresses", `"192.0.2.1/28"`, "without host bits"}},
		"allow no prefix":   {args: []string{"--allow-addresses=192.0.2.1"}, want: []string{"allow-addresses", `"192.0.2.1"`, "prefixes"}},
		"source":            {args: []string{"--source-address=10.0.0.1,127.0.0.1"}, want: []string{"source-address", `"127.0.0.1"`, "unicast"}},
		"source with zone":  {args: []string{"--source-address=fd00::1%eth0"}, want: []string{"source-address", "unicast"}},
		"many sources":      {args: []string{"--source-address=" + manySources(15)}, want: []string{"source-address", `"15"`, "at most 14"}},
		"data dir":          {args: []string{"--cni-data-dir=cni"}, want: []string{"cni-data-dir", `"cni"`, "absolute"}},
		"force alone":       {args: []string{"--force"}, want: []string{"force", "--cleanup"}},
		"a port":            {env: []string{"WEFTD_LISTEN_PORT=9469"}, want: []string{"WEFTD_LISTEN_PORT", "no such setting"}},
		"store":             {args: []string{"--store=consul"}, want: []string{"store", "flag --store", `"consul"`, "etcd or kube"}},
		"relative conf map": {args: []string{"--net-conf=net-conf.json"}, want: []string{"net-conf", `"net-conf.json"`, "absolute"}},
		"argument":          {args: []string{"start"}, want: []string{`"start"`, "flags only"}},
	} {
		_, err := parseOptions(append([]string{"--node-name=n1"}, c.args...), c.env)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for _, w := range c.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: error %q does not mention %q", name, err, w)
			}
		}
	}
}

func manySources(n int) string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("10.0.0.%d", i+1))
	}
	return strings.Join(out, ",")
}

func TestDataPlaneOptions(t *testing.T) {
	o := parse(t, nil)
	if o.Guard != overlay.GuardBind || !o.IPMasq || !o.DeviceGRO || o.MassRemovalHold != 5*time.Minute || len(o.Sources) != 0 || o.Cleanup || o.CNIDataDir != "/var/lib/cni/weft" {
		t.Errorf("defaults: %+v", o)
	}
	o = parse(t, []string{"WEFTD_SOURCE_ADDRESS=10.0.0.9, fd00::9"}, "--ingress-guard=peers", "--mass-removal-hold=0", "--ip-masq=false", "--device-gro=false")
	if fmt.Sprint(o.Sources) != "[10.0.0.9 fd00::9]" || o.Guard != overlay.GuardPeers || o.MassRemovalHold != 0 || o.IPMasq || o.DeviceGRO {
		t.Errorf("%+v", o)
	}
	o = parse(t, nil, "--source-address=10.0.0.9,10.0.0.1", "--source-address=10.0.0.9", "--cleanup", "--force")
	if fmt.Sprint(o.Sources) != "[10.0.0.1 10.0.0.9]" || !o.Cleanup || !o.Force {
		t.Errorf("%+v", o)
	}
}

// Only who needs neither guard nor masquerading leaves nftables to another.
func TestWhoOwnsTheTable(t *testing.T) {
	for args, want := range map[string]overlay.Guard{
		"":                                    overlay.GuardBind,
		"--ingress-guard=peers":               overlay.GuardPeers,
		"--ingress-guard=off":                 overlay.GuardOff, // masquerades
		"--ip-masq=false":                     overlay.GuardBind,
		"--ingress-guard=off --ip-masq=false": "",
	} {
		o := parse(t, nil, strings.Fields(args)...)
		if got := o.selfGuard(); got != want || o.filters() != (want != "") {
			t.Errorf("%q: guard %q, owns the table: %t", args, got, o.filters())
		}
	}
}

// flannel masquerades only when asked, and tells its CNI plugin so.
func TestFlannelPresetMasquerades(t *testing.T) {
	for _, c := range []struct {
		env, args []string
		want      bool
	}{
		{nil, nil, false},
		{nil, []string{"-ip-masq"}, true},
		{[]string{"FLANNELD_IP_MASQ=true"}, nil, true},
		{[]string{"FLANNELD_IP_MASQ=true"}, []string{"--ip-masq=false"}, false},
	} {
		o := parse(t, c.env, append([]string{"--flannel-compat"}, c.args...)...)
		a := newAgent(o, newLogger(o, testWriter{t}))
		env := a.subnetEnv(subnet.Config{}, overlay.Status{MTU: 1450})
		if o.IPMasq != c.want || env.IPMasq != c.want || env.MTU != 1450 {
			t.Errorf("%v %v: option %t, subnet.env %+v", c.env, c.args, o.IPMasq, env)
		}
	}
}

func TestFlannelPreset(t *testing.T) {
	o := parse(t, []string{"FLANNELD_ETCD_PREFIX=/mine/network", "FLANNELD_IPTABLES_RESYNC=5"},
		"-flannel-compat", "-iface=eth1", "-v", "10", "-subnet-lease-renew-margin", "30", "-healthz-port=8081")
	if o.EtcdPrefix != "/mine/network" || o.SubnetFile != "/run/flannel/subnet.env" || !o.EtcdInsecure {
		t.Errorf("prefix %q, subnet file %q, insecure %t", o.EtcdPrefix, o.SubnetFile, o.EtcdInsecure)
	}
	if strings.Join(o.EtcdEndpoints, " ") != "http://127.0.0.1:4001 http://127.0.0.1:2379" {
		t.Errorf("endpoints %q", o.EtcdEndpoints)
	}
	if o.RenewMargin != 30*time.Minute || o.Listen != "0.0.0.0:8081" || o.LogLevel.String() != "debug" {
		t.Errorf("margin %s, listen %s, level %s", o.RenewMargin, o.Listen, o.LogLevel)
	}
	if o.origin["listen"] != "flag --healthz-port" {
		t.Errorf("listen comes from %s", o.origin["listen"])
	}
	if six := parse(t, nil, "--flannel-compat", "-healthz-ip=::", "-healthz-port=8081"); six.Listen != "[::]:8081" {
		t.Errorf("listen %s", six.Listen)
	}
	if len(o.notes) != 1 || !strings.Contains(o.notes[0], "FLANNELD_IPTABLES_RESYNC") {
		t.Errorf("notes %q", o.notes)
	}
	if names := presetFor(true).names; names[4] != "flannel." || names[6] != "flannel-v6." {
		t.Errorf("names %v", names)
	}
}

func TestFlannelPresetFromEnvironment(t *testing.T) {
	if o := parse(t, []string{"WEFTD_FLANNEL_COMPAT=true"}); !o.FlannelCompat || o.EtcdPrefix != "/coreos.com/network" {
		t.Errorf("compat %t, prefix %q", o.FlannelCompat, o.EtcdPrefix)
	}
}

// What weft cannot do for a flannel user is refused before anything changes.
func TestFlannelPresetRefuses(t *testing.T) {
	for _, args := range [][]string{{"-kube-subnet-mgr=perhaps"}, {"-subnet-lease-renew-margin=0"}, {"-healthz-port=70000"}} {
		_, err := parseOptions(append([]string{"--node-name=n1", "--flannel-compat"}, args...), nil)
		if err == nil || !strings.Contains(err.Error(), strings.Trim(strings.Split(args[0], "=")[0], "-")) {
			t.Errorf("%v: %v", args, err)
		}
	}
	if _, err := parseOptions([]string{"--node-name=n1", "-iface=eth1"}, nil); err == nil {
		t.Error("a single dash was accepted without the preset")
	}
}

func TestCheckConfig(t *testing.T) {
	conf := filepath.Join(t.TempDir(), "net-conf.json")
	if err := os.WriteFile(conf, []byte(`{"Network":"10.42.0.0/16"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	args := []string{"--node-name=n1", "--check-config", "--etcd-password=secret", "--etcd-username=u", conf}
	if code := run(context.Background(), args, nil, &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	for _, want := range []string{"etcd-prefix", `"/weft/network"`, "default", "flag --etcd-password", "10.42.0.0/16", "VNI 1", "8472", "ok\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
	if strings.Contains(out.String(), "secret") {
		t.Error("the password is printed")
	}
	if err := os.WriteFile(conf, []byte(`{"Network":"10.42.0.0/29"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := run(context.Background(), args, nil, &out, &errs); code != 1 || !strings.Contains(errs.String(), conf) {
		t.Errorf("a wrong file: exit %d, %q", code, errs.String())
	}
}

func TestUsage(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run(context.Background(), []string{"--help"}, nil, &out, &errs); code != 0 || !strings.Contains(out.String(), "--etcd-endpoints") {
		t.Errorf("exit %d: %s %s", code, out.String(), errs.String())
	}
	if code := run(context.Background(), []string{"--flannel-compat", "-h"}, nil, &out, &errs); code != 0 || !strings.Contains(out.String(), "--healthz-port") {
		t.Errorf("-h in flannel's way: exit %d: %s", code, errs.String())
	}
	if code := run(context.Background(), []string{"--wrong"}, nil, &out, &errs); code != 2 {
		t.Errorf("a wrong flag: exit %d", code)
	}
}
