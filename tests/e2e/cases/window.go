// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/e2e/parts"
	"weft.dev/weft/tests/netlab"
)

const (
	windowRounds  = 5
	windowPods    = 10 // a round
	windowControl = 6  // pods without a policy
	// windowStays is how long pods send after the last of them runs.
	windowStays = 3 * time.Second
	// windowAhead is how many addresses of each node are called before they are
	// anybody's: more than pods start there in a round.
	windowAhead = 16
	windowCalls = 20 * time.Millisecond // to each of them
)

// senderManifest runs pods that send echo requests to every address of a list
// from their first instruction on, numbered from 1, every pingEvery. more is more
// of the pods' spec, in YAML.
func senderManifest(namespace, name string, replicas int, more string, to []netip.Addr) string {
	var list []string
	for _, a := range to {
		list = append(list, a.String())
	}
	return `apiVersion: apps/v1
kind: Deployment
metadata: {name: ` + name + `, namespace: ` + namespace + `}
spec:
  replicas: ` + strconv.Itoa(replicas) + `
  selector: {matchLabels: {role: ` + name + `}}
  template:
    metadata: {labels: {role: ` + name + `}}
    spec:
      terminationGracePeriodSeconds: 0
      enableServiceLinks: false
` + more + `      containers:
      - name: sender
        image: ` + parts.AgnhostImage + `
        imagePullPolicy: Never
        command: [sh, -c, "for a in ` + strings.Join(list, " ") + `; do ping -n -q -i ` + fmt.Sprint(pingEvery.Seconds()) + ` $a & done; wait"]
`
}

const pingEvery = 20 * time.Millisecond

func namespaceManifest(name string) string {
	return "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + "}\n---\n"
}

// denyAll isolates the pods of namespace shut.
const denyAll = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: shut}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
`

// captureTable remembers who has sent an echo request. It comes before
// everything else that could drop it.
const captureTable = `table inet capture {
  set seen4 { type ipv4_addr; flags dynamic; size 65535; }
  set seen6 { type ipv6_addr; flags dynamic; size 65535; }
  chain arrivals {
    type filter hook input priority -300;
    icmp type echo-request add @seen4 { ip saddr }
    icmpv6 type echo-request add @seen6 { ip6 saddr }
  }
}
`

// A watch is pods on all nodes that see who sends to them, and call the addresses
// that new pods will have.
type watch struct {
	c      *cluster.Cluster
	sites  []site
	voices []*chatter
}

// A crossing is what was heard of addresses of pods that were started.
type crossing struct{ addrs, out, in int }

// window starts pods that send at once and are called before they are there, by
// pods on their own node and on others, and looks at the receivers who has been
// heard. Pods without a policy are heard and hear, or it would prove nothing.
func window(ctx context.Context, c *cluster.Cluster) (err error) {
	sites, err := web(ctx, c)
	if err != nil {
		return err
	}
	w := &watch{c: c, sites: sites}
	defer func() { err = errors.Join(err, w.end(context.WithoutCancel(ctx))) }()
	var to []netip.Addr
	for _, s := range sites {
		to = append(to, s.IPs...)
		cmd := c.Command(ctx, "nft", "-f", "-")
		cmd.Stdin = strings.NewReader(captureTable)
		if _, err := s.Network().RunCmd(ctx, cmd); err != nil {
			return err
		}
		v, err := chat(ctx, s.Place, nil, windowCalls)
		if err != nil {
			return err
		}
		w.voices = append(w.voices, v)
	}
	for namespace, policies := range map[string]string{"ajar": "", "shut": denyAll} {
		if err := c.Apply(ctx, namespaceManifest(namespace)+policies+senderManifest(namespace, "sender", 0, "", to)); err != nil {
			return err
		}
	}
	open, err := w.round(ctx, "ajar", windowControl)
	if err != nil {
		return err
	}
	if open.out != open.addrs || open.in != open.addrs {
		return fmt.Errorf("of %d addresses without a policy %d were heard and %d heard others: it proves nothing", open.addrs, open.out, open.in)
	}
	var shut crossing
	for range windowRounds {
		one, err := w.round(ctx, "shut", windowPods)
		if err != nil {
			return err
		}
		shut = crossing{shut.addrs + one.addrs, shut.out + one.out, shut.in + one.in}
	}
	c.Progress("  of %d addresses under a policy that denies all %d were heard and %d heard others; of %d without, %d and %d", shut.addrs, shut.out, shut.in, open.addrs, open.out, open.in)
	if shut.out+shut.in > 0 {
		return fmt.Errorf("of %d addresses under a policy that denies all %d were heard and %d heard others", shut.addrs, shut.out, shut.in)
	}
	return nil
}

func (w *watch) end(ctx context.Context) error {
	for _, v := range w.voices {
		v.end()
	}
	_, err := w.c.Kubectl(ctx, "delete", "namespace", "shut", "ajar", "--ignore-not-found", "--wait=true")
	for _, s := range w.sites {
		_, e := s.Network().Run(ctx, "nft", "delete", "table", "inet", "capture")
		err = errors.Join(err, e)
	}
	closeAll(w.sites)
	return err
}

// round starts n pods of a namespace, lets them send and be called, and ends
// them.
func (w *watch) round(ctx context.Context, namespace string, n int) (sum crossing, err error) {
	for _, s := range w.sites { // a pod may get the address of one that was heard
		for _, set := range []string{"seen4", "seen6"} {
			if _, err := s.Network().Run(ctx, "nft", "flush", "set", "inet", "capture", set); err != nil {
				return sum, err
			}
		}
	}
	called, err := w.ahead(ctx)
	if err != nil {
		return sum, err
	}
	if err := scaleTo(ctx, w.c, namespace, "sender", n); err != nil {
		return sum, err
	}
	if err := netlab.Pause(ctx, windowStays); err != nil {
		return sum, err
	}
	pods, err := w.c.Pods(ctx, namespace, "role=sender")
	if err != nil {
		return sum, err
	}
	seen, err := w.seen(ctx)
	if err != nil {
		return sum, err
	}
	for _, p := range pods {
		hears, err := strays(ctx, p)
		if err != nil {
			return sum, err
		}
		for _, a := range p.IPs {
			if !slices.Contains(called, a) {
				return sum, fmt.Errorf("%s of %s was not called before it was there: it proves nothing", a, p.Name)
			}
			sum.addrs++
			if seen[a] {
				sum.out++
			}
			if hears[a.Is6()] {
				sum.in++
			}
		}
	}
	return sum, scaleTo(ctx, w.c, namespace, "sender", 0)
}

// ahead makes the pods of w call the addresses that host-local gives next, until
// each of them has been called by each.
func (w *watch) ahead(ctx context.Context) ([]netip.Addr, error) {
	var list []netip.Addr
	for _, s := range w.sites {
		of, err := subnets(ctx, w.c, s.node.Name())
		if err != nil {
			return nil, err
		}
		for i, subnet := range of {
			b, err := os.ReadFile(s.node.Path(fmt.Sprint("/var/lib/cni/networks/weft/last_reserved_ip.", i)))
			if err != nil {
				return nil, fmt.Errorf("on %s: %w", s.node.Name(), err)
			}
			a, err := netip.ParseAddr(strings.TrimSpace(string(b)))
			if err != nil {
				return nil, fmt.Errorf("last address of %s: %w", s.node.Name(), err)
			}
			for range windowAhead {
				if a = a.Next(); !subnet.Contains(a) || !subnet.Contains(a.Next()) {
					a = subnet.Addr().Next().Next() // after the bridge's
				}
				list = append(list, a)
			}
		}
	}
	for _, v := range w.voices {
		v.forget()
		v.targets.Store(&list)
	}
	return list, eventually(ctx, 10*time.Second, func(context.Context) error {
		for i, v := range w.voices {
			if at := slices.IndexFunc(list, func(a netip.Addr) bool { return !v.calls(a) }); at >= 0 {
				return fmt.Errorf("%s does not call %s", w.sites[i].Name(), list[at])
			}
		}
		return nil
	})
}

// seen are the addresses that the sites have had echo requests of.
func (w *watch) seen(ctx context.Context) (map[netip.Addr]bool, error) {
	seen := map[netip.Addr]bool{}
	for _, s := range w.sites {
		for _, set := range []string{"seen4", "seen6"} {
			out, err := s.Network().Run(ctx, "nft", "list", "set", "inet", "capture", set)
			if err != nil {
				return nil, err
			}
			for _, word := range strings.FieldsFunc(out, func(r rune) bool { return strings.ContainsRune(" ,{}\n\t", r) }) {
				if a, err := netip.ParseAddr(word); err == nil {
					seen[a] = true
				}
			}
		}
	}
	return seen, nil
}

// strays says of each family, true for IPv6, whether a pod has had datagrams
// since its network was made. Nothing in it listens, which the kernel counts.
func strays(ctx context.Context, p cluster.Pod) (map[bool]bool, error) {
	place, err := p.Place()
	if err != nil {
		return nil, err
	}
	defer place.Close()
	out, err := place.Network().Run(ctx, "cat", "/proc/self/net/snmp", "/proc/self/net/snmp6")
	if err != nil {
		return nil, err
	}
	got := map[bool]bool{}
	var names []string
	found := 0
	for sc := bufio.NewScanner(strings.NewReader(out)); sc.Scan(); {
		words := strings.Fields(sc.Text())
		if len(words) == 2 && words[0] == "Udp6NoPorts" {
			got[true] = words[1] != "0"
			found++
		}
		if len(words) == 0 || words[0] != "Udp:" {
			continue
		}
		if names == nil { // the line before the numbers
			names = words
			continue
		}
		for i, name := range names {
			if name == "NoPorts" && i < len(words) {
				got[false] = words[i] != "0"
				found++
			}
		}
	}
	if found != 2 {
		return nil, fmt.Errorf("in %s: the kernel counts no datagrams for nobody:\n%s", p.Name, out)
	}
	return got, nil
}

// scaleTo makes a deployment of senderManifest have n pods that run, or that are
// gone.
func scaleTo(ctx context.Context, c *cluster.Cluster, namespace, name string, n int) error {
	if _, err := c.Kubectl(ctx, "-n", namespace, "scale", "deployment/"+name, fmt.Sprintf("--replicas=%d", n)); err != nil {
		return err
	}
	return eventually(ctx, 3*time.Minute, func(ctx context.Context) error {
		pods, err := c.Pods(ctx, namespace, "role="+name)
		if err != nil {
			return err
		}
		running := 0
		for _, p := range pods {
			if p.Phase == "Running" && len(p.IPs) == len(c.Config().Families()) {
				running++
			}
		}
		if running != n || len(pods) != n {
			return fmt.Errorf("%d of %d pods in %s, %d of them running", len(pods), n, namespace, running)
		}
		return nil
	})
}
