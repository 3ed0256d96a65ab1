// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/spf13/pflag"

	"weft.dev/weft/cmd/internal/api"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// envPrefix starts the name of the environment variable of every flag.
const envPrefix = "WEFTD_"

// maxSocketPath is what fits into sun_path (unix(7)).
const maxSocketPath = 107

// mostSources leaves room in a lease, which holds 16 sources, for those that
// weftd adds itself: the underlay's own address of each family.
const mostSources = 14

// options is the agent's configuration: flags over environment over defaults.
type options struct {
	FlannelCompat bool
	NodeName      string

	kubeOptions

	EtcdEndpoints []string
	EtcdPrefix    string
	EtcdCAFile    string
	EtcdCertFile  string
	EtcdKeyFile   string
	EtcdUsername  string
	EtcdPassword  string
	EtcdInsecure  bool
	LeaseTTL      time.Duration
	RenewMargin   time.Duration

	Ifaces       []string
	IfaceRegexes []string
	CanReach     []netip.Addr
	PublicIPs    []netip.Addr
	Sources      []netip.Addr // --source-address, sorted

	Guard           overlay.Guard
	IPMasq          bool
	DeviceGRO       bool
	MassRemovalHold time.Duration // 0 is none

	NetworkPolicy bool
	SpoofGuard    bool
	// AllowAddresses are what pods may have beside their own.
	AllowAddresses []netip.Prefix
	OnAgentDown    string // what becomes of a pod that starts then: "deny" or "open"

	SubnetFile string
	StateDir   string
	Socket     string
	Listen     string
	CNIConf    string
	CNIDataDir string

	Cleanup     bool
	Force       bool
	Once        bool
	CheckConfig bool
	CheckFile   string // named after --check-config
	LogLevel    logrus.Level
	Version     bool

	flags  *pflag.FlagSet
	origin map[string]string // flag name -> where its value came from
	notes  []string          // what was accepted without effect, for the log
}

// preset is what differs between weft's own names and flannel's.
type preset struct {
	etcdPrefix, subnetFile, cniConf, endpoints string
	netConf                                    string
	cniNetwork, cniDataDir                     string
	names                                      overlay.Names
	ipMasq, networkPolicy                      bool
}

func presetFor(flannel bool) preset {
	if flannel {
		// flannel v0.28: main.go (prefix, subnet file, endpoints),
		// pkg/backend/vxlan (device names), Documentation/kube-flannel.yml.
		return preset{
			etcdPrefix: "/coreos.com/network", subnetFile: "/run/flannel/subnet.env",
			cniConf:    "/etc/cni/net.d/10-flannel.conflist",
			netConf:    "/etc/kube-flannel/net-conf.json", // -net-config-path
			cniNetwork: "cbr0", cniDataDir: "/var/lib/cni/flannel",
			endpoints: "http://127.0.0.1:4001,http://127.0.0.1:2379",
			names:     overlay.Names{subnet.IPv4: "flannel.", subnet.IPv6: "flannel-v6."},
		}
	}
	return preset{
		etcdPrefix: "/weft/network", subnetFile: "/run/weft/subnet.env",
		cniConf:    "/etc/cni/net.d/05-weft.conflist",
		netConf:    "/etc/weft/net-conf.json",
		cniNetwork: "weft", cniDataDir: "/var/lib/cni/weft",
		endpoints: "http://127.0.0.1:2379",
		names:     overlay.Names{subnet.IPv4: "weft.", subnet.IPv6: "weft6."},
		ipMasq:    true, networkPolicy: true,
	}
}

// raw holds flag values as text, so that one place turns them into types and
// every complaint can name the value and where it came from.
type raw struct {
	endpoints, canReach, publicIP, publicIPFor6, guard, logLevel string
	sources, allow                                               []string
	checkConfig                                                  bool
}

func parseOptions(args, env []string) (*options, error) {
	environ := envMap(env)
	compat, err := wantsFlannel(args, environ)
	if err != nil {
		return nil, err
	}
	o := &options{origin: map[string]string{}}
	r := &raw{}
	var fl flannelFlags
	o.flags = o.define(presetFor(compat), r)
	if compat {
		fl.define(o, o.flags)
		args = doubleDashes(args)
	}
	if err := o.flags.Parse(args); err != nil {
		return o, err
	}
	if err := o.fromEnvironment(environ, compat); err != nil {
		return o, err
	}
	if compat {
		if err := fl.apply(o, r); err != nil {
			return o, err
		}
	}
	if err := o.chooseStore(environ); err != nil {
		return o, err
	}
	return o, o.finish(r)
}

func (o *options) define(p preset, r *raw) *pflag.FlagSet {
	f := pflag.NewFlagSet("weftd", pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {}
	host, _ := os.Hostname() // empty is refused in finish, naming --node-name

	o.Conditions = true
	f.StringVar((*string)(&o.Store), "store", string(storeEtcd), "where leases are: etcd, or kube for annotations of Nodes (default in a pod and with --kubeconfig)")
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "credentials for the Kubernetes API; empty means those of this pod")
	f.StringVar(&o.NetConf, "net-conf", p.netConf, "file with the network configuration (a mounted ConfigMap) for --store=kube; followed live")
	f.StringVar(&r.endpoints, "etcd-endpoints", p.endpoints, "comma-separated etcd endpoints; https turns TLS on")
	f.StringVar(&o.EtcdPrefix, "etcd-prefix", p.etcdPrefix, "key below which config and subnets live; names the network")
	f.StringVar(&o.EtcdCAFile, "etcd-cafile", "", "CA certificate (PEM) that signs the etcd servers' certificates")
	f.StringVar(&o.EtcdCertFile, "etcd-certfile", "", "client certificate (PEM); needs --etcd-keyfile")
	f.StringVar(&o.EtcdKeyFile, "etcd-keyfile", "", "key of the client certificate (PEM)")
	f.StringVar(&o.EtcdUsername, "etcd-username", "", "etcd user")
	f.StringVar(&o.EtcdPassword, "etcd-password", "", "etcd password; better set as "+envPrefix+"ETCD_PASSWORD")
	f.BoolVar(&o.EtcdInsecure, "etcd-insecure", false, "allow plaintext to etcd beyond loopback")
	f.DurationVar(&o.LeaseTTL, "lease-ttl", 24*time.Hour, "how long the store keeps this node's lease without renewal; at least 3s")
	f.DurationVar(&o.RenewMargin, "lease-renew-margin", time.Hour, "renew when this much of the lease is left; less than --lease-ttl")
	f.StringVar(&o.NodeName, "node-name", host, "name of this node, unique in the network; with --store=kube that of its Node, by default NODE_NAME")
	f.StringArrayVar(&o.Ifaces, "iface", nil, "underlay interface by name or address; repeated: the first that exists")
	f.StringArrayVar(&o.IfaceRegexes, "iface-regex", nil, "underlay interface by regular expression on addresses, then names; repeatable")
	f.StringVar(&r.canReach, "iface-can-reach", "", "underlay interface through which this address is reached")
	f.StringVar(&r.publicIP, "public-ip", "", "IPv4 address that peers send to (default: the underlay's own)")
	f.StringVar(&r.publicIPFor6, "public-ipv6", "", "IPv6 address that peers send to (default: the underlay's own)")
	f.StringSliceVar(&r.sources, "source-address", nil, "further address that peers see this node's VXLAN packets come from, e.g. behind NAT; repeatable")
	f.StringVar(&r.guard, "ingress-guard", string(overlay.GuardBind), "VXLAN packets let in: bind (a peer's address with this peer's pods inside), peers (a peer's address) or off")
	f.BoolVar(&o.IPMasq, "ip-masq", p.ipMasq, "masquerade what pods send out of the pod networks")
	f.BoolVar(&o.DeviceGRO, "device-gro", true, "merge packets once more after they come out of the tunnel; off suits nodes whose network card merges VXLAN itself")
	f.DurationVar(&o.MassRemovalHold, "mass-removal-hold", 5*time.Minute, "keep the peers for so long when the store loses more than half of them at once; 0 is off")
	f.BoolVar(&o.NetworkPolicy, "network-policy", p.networkPolicy, "enforce NetworkPolicies on this node's pods, with --store=kube; off removes what is in force")
	f.BoolVar(&o.SpoofGuard, "spoof-guard", true, "with network policies, keep pods from sending from addresses that are not theirs")
	f.StringSliceVar(&r.allow, "allow-addresses", nil, "prefixes that pods may have addresses of beside their own, if annotation "+subnet.Domain+"/allow-addresses asks for it; repeatable")
	f.StringVar(&o.OnAgentDown, "policy-agent-down", "deny", "what becomes of a pod that starts while the agent is down: deny (it waits) or open (it starts, and policies reach it later)")
	f.StringVar(&o.SubnetFile, "subnet-file", p.subnetFile, "where the CNI plugin reads this node's subnets and MTU")
	f.StringVar(&o.StateDir, "state-dir", "/var/lib/weft", "directory for what must survive a reboot (the instance id)")
	f.StringVar(&o.Socket, "socket", api.DefaultSocket, "unix socket for the weft command and the CNI plugin")
	f.StringVar(&o.Listen, "listen", "127.0.0.1:9469", "address for /livez, /readyz and /metrics; empty turns them off")
	f.StringVar(&o.CNIConf, "cni-conf", p.cniConf, "CNI configuration to write after the first full sync; empty writes none")
	f.StringVar(&o.CNIDataDir, "cni-data-dir", p.cniDataDir, "where the CNI plugin keeps its state (its dataDir)")
	f.BoolVar(&o.FlannelCompat, "flannel-compat", false, "take flannel's names, keys and flags instead of weft's")
	f.BoolVar(&o.Once, "once", false, "lease, bring the kernel in sync once, and exit")
	f.BoolVar(&o.Cleanup, "cleanup", false, "remove what weftd has made on this node and written on its Node, list what pods still use, and exit; needs no agent, and no API for the host")
	f.BoolVar(&o.Force, "force", false, "with --cleanup: remove the bridge and the running pods' interfaces too")
	f.BoolVar(&r.checkConfig, "check-config", false, "check flags, environment and, when named, a net-conf.json; print them and exit")
	f.StringVar(&r.logLevel, "log-level", "info", "error, warning, info or debug")
	f.BoolVar(&o.Version, "version", false, "print the version and exit")
	return f
}

// fromEnvironment fills every flag that the command line left out, and
// refuses a WEFTD_ variable that no flag answers to: it is a typing error.
func (o *options) fromEnvironment(env map[string]string, compat bool) (err error) {
	known := map[string]bool{}
	o.flags.VisitAll(func(f *pflag.Flag) {
		name := envPrefix + envName(f.Name)
		known[name] = true
		if f.Changed {
			o.origin[f.Name] = "flag --" + f.Name
			return
		}
		o.origin[f.Name] = "default"
		val, ok := env[name]
		if !ok && compat {
			name = "FLANNELD_" + envName(f.Name)
			val, ok = env[name]
		}
		if !ok || err != nil {
			return
		}
		if e := setFlag(o.flags, f, val); e != nil {
			err = fmt.Errorf("environment %s=%q: %w", name, val, e)
		}
		o.origin[f.Name] = "environment " + name
	})
	for name := range env {
		if err == nil && strings.HasPrefix(name, envPrefix) && !known[name] && !serviceLink(name, env[name]) {
			err = fmt.Errorf("environment %s: no such setting; `weftd --help` lists the flags, each is also %s<FLAG>", name, envPrefix)
		}
	}
	return err
}

// serviceLink reports whether Kubernetes has put a variable into the pod's
// environment because of a Service whose name begins with weftd.
func serviceLink(name, val string) bool {
	return strings.Contains(name, "_SERVICE_") || // ..._SERVICE_HOST, ..._SERVICE_PORT_HTTP
		regexp.MustCompile(`_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$`).MatchString(name) &&
			(strings.Contains(name, "_PORT_") || strings.Contains(val, "://"))
}

// setFlag sets a flag from one string. A list in the environment is separated
// by commas, except that of regular expressions, where a comma means itself.
func setFlag(fs *pflag.FlagSet, f *pflag.Flag, val string) error {
	if list, ok := f.Value.(pflag.SliceValue); ok && f.Name != "iface-regex" {
		return list.Replace(splitList(val))
	}
	return fs.Set(f.Name, val)
}

func envName(flag string) string {
	return strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(flag))
}

func envMap(env []string) map[string]string {
	m := make(map[string]string, len(env))
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			m[k] = v
		}
	}
	return m
}

// finish turns text into types and checks ranges. Errors name the value,
// what is allowed and where the value came from.
func (o *options) finish(r *raw) error {
	bad := func(flag string, val any, want string) error {
		return fmt.Errorf("%s (%s): value %q: want %s", flag, o.origin[flag], fmt.Sprint(val), want)
	}
	o.CheckConfig = r.checkConfig
	if rest := o.flags.Args(); len(rest) == 1 && o.CheckConfig {
		o.CheckFile = rest[0]
	} else if len(rest) > 0 {
		return fmt.Errorf("argument %q: weftd takes flags only (a file may follow --check-config)", rest[0])
	}
	if o.EtcdEndpoints = splitList(r.endpoints); len(o.EtcdEndpoints) == 0 {
		return bad("etcd-endpoints", r.endpoints, "at least one URL such as https://10.0.0.1:2379")
	}
	if len(o.Socket) == 0 || len(o.Socket) > maxSocketPath {
		return bad("socket", o.Socket, fmt.Sprintf("a path of 1 to %d bytes", maxSocketPath))
	}
	if !strings.HasPrefix(o.EtcdPrefix, "/") || strings.HasSuffix(o.EtcdPrefix, "/") {
		return bad("etcd-prefix", o.EtcdPrefix, "a key that begins with / and does not end with it, such as /weft/network")
	}
	if !regexp.MustCompile(`^[a-zA-Z0-9]([-a-zA-Z0-9_.]{0,251}[a-zA-Z0-9])?$`).MatchString(o.NodeName) {
		return bad("node-name", o.NodeName, "1 to 253 letters, digits, dots, dashes or underscores")
	}
	if o.LeaseTTL < 3*time.Second || o.LeaseTTL > 365*24*time.Hour {
		return bad("lease-ttl", o.LeaseTTL, "3s to 8760h")
	}
	if o.RenewMargin <= 0 || o.RenewMargin >= o.LeaseTTL {
		return bad("lease-renew-margin", o.RenewMargin, "more than 0 and less than --lease-ttl, "+o.LeaseTTL.String())
	}
	for _, re := range o.IfaceRegexes {
		if _, err := regexp.Compile(re); err != nil {
			return bad("iface-regex", re, "a Go regular expression: "+err.Error())
		}
	}
	if err := o.addresses(r, bad); err != nil {
		return err
	}
	if err := o.dataPlane(r, bad); err != nil {
		return err
	}
	level, err := logrus.ParseLevel(r.logLevel)
	if err != nil || level < logrus.ErrorLevel || level > logrus.DebugLevel {
		return bad("log-level", r.logLevel, "error, warning, info or debug")
	}
	o.LogLevel = level
	return nil
}

// dataPlane checks what concerns the table, the hold and the end of it all.
func (o *options) dataPlane(r *raw, bad func(string, any, string) error) error {
	const longestHold = 24 * time.Hour
	o.Guard = overlay.Guard(r.guard)
	if o.Guard != overlay.GuardBind && o.Guard != overlay.GuardPeers && o.Guard != overlay.GuardOff {
		return bad("ingress-guard", r.guard, "bind, peers or off")
	}
	if o.OnAgentDown != "deny" && o.OnAgentDown != "open" {
		return bad("policy-agent-down", o.OnAgentDown, "deny or open")
	}
	if o.MassRemovalHold < 0 || o.MassRemovalHold > longestHold {
		return bad("mass-removal-hold", o.MassRemovalHold, "0 (off) to "+longestHold.String())
	}
	for _, p := range []struct{ flag, val string }{
		{"cni-data-dir", o.CNIDataDir}, {"state-dir", o.StateDir}, {"subnet-file", o.SubnetFile}, {"socket", o.Socket}, {"cni-conf", o.CNIConf},
	} {
		if !filepath.IsAbs(p.val) && !(p.flag == "cni-conf" && p.val == "") {
			return bad(p.flag, p.val, "an absolute path")
		}
	}
	if o.Listen != "" {
		_, port, err := net.SplitHostPort(o.Listen)
		if _, numErr := strconv.ParseUint(port, 10, 16); err != nil || numErr != nil {
			return bad("listen", o.Listen, "HOST:PORT with a port up to 65535, e.g. 127.0.0.1:9469, or nothing")
		}
	}
	if o.Force && !o.Cleanup {
		return bad("force", o.Force, "it together with --cleanup")
	}
	return nil
}

// filters reports whether this agent owns nftables table inet weft. Without
// guard and masquerading there is none, so that another agent may have it.
func (o *options) filters() bool { return o.Guard != overlay.GuardOff || o.IPMasq }

// enforces reports whether this agent keeps policies in force: they are in the
// Kubernetes API alone.
func (o *options) enforces() bool { return o.NetworkPolicy && o.Store == storeKube }

// selfGuard is the guard as the reconciler wants it.
func (o *options) selfGuard() overlay.Guard {
	if !o.filters() {
		return ""
	}
	return o.Guard
}

func (o *options) addresses(r *raw, bad func(string, any, string) error) error {
	if r.canReach != "" {
		a, err := netip.ParseAddr(r.canReach)
		if err != nil {
			return bad("iface-can-reach", r.canReach, "an IP address")
		}
		o.CanReach = []netip.Addr{a}
	}
	for _, p := range []struct {
		flag, val string
		family    subnet.Family
	}{{"public-ip", r.publicIP, subnet.IPv4}, {"public-ipv6", r.publicIPFor6, subnet.IPv6}} {
		if p.val == "" {
			continue
		}
		a, err := netip.ParseAddr(p.val)
		if err != nil || subnet.FamilyOf(a) != p.family || a.Zone() != "" || !a.IsGlobalUnicast() {
			return bad(p.flag, p.val, "a unicast "+p.family.String()+" address")
		}
		o.PublicIPs = append(o.PublicIPs, a.Unmap())
	}
	for _, text := range r.allow {
		p, err := netip.ParsePrefix(text)
		if err != nil || p.Addr().Is4In6() || p != p.Masked() {
			return bad("allow-addresses", text, "prefixes such as 192.0.2.0/28 or 2001:db8::/64, without host bits")
		}
		o.AllowAddresses = append(o.AllowAddresses, p)
	}
	for _, text := range r.sources {
		a, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil || a.Zone() != "" || !a.IsGlobalUnicast() {
			return bad("source-address", text, "unicast IP addresses")
		}
		o.Sources = append(o.Sources, a.Unmap())
	}
	slices.SortFunc(o.Sources, netip.Addr.Compare)
	if o.Sources = slices.Compact(o.Sources); len(o.Sources) > mostSources {
		return bad("source-address", len(o.Sources), fmt.Sprintf("at most %d addresses", mostSources))
	}
	return nil
}

func splitList(s string) []string {
	var out []string
	for _, e := range strings.Split(s, ",") {
		if e = strings.TrimSpace(e); e != "" {
			out = append(out, e)
		}
	}
	return out
}

// usage is the text of --help.
func usage(o *options) string {
	return `weftd leases this node's pod subnets and keeps its VXLAN overlay in the kernel.

  weftd                                   etcd on this machine, everything else found
  weftd --etcd-endpoints https://10.0.0.1:2379 --etcd-cafile ca.pem
  weftd --store kube --kubeconfig /etc/weft/kubeconfig
  weftd --check-config net-conf.json      say what would be used, and why
  weftd --cleanup                         take weft off this node
  weftd install-cni                       put the CNI plugins where runtimes look for them

Every flag can also be set as ` + envPrefix + `<FLAG>, e.g. ` + envPrefix + `ETCD_PREFIX; flags win.

` + o.flags.FlagUsages()
}
