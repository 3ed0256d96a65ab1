// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"bufio"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"weft.dev/weft/tests/e2e/cluster"
)

const (
	newcomers = 50
	// newcomersAtOnce is few enough for kubelets that share a machine to tell the
	// API of a pod's addresses about when its container starts: other nodes have
	// them from there.
	newcomersAtOnce = 5
	// heardWithin is how long after its first instruction other nodes may take to
	// let a new pod in, at the 99th percentile.
	heardWithin = time.Second
	lastNamed   = 5 // of the addresses that took the longest
)

// welcome starts pods that a policy lets reach a server on another node, and
// looks which of their echo requests is the first that it hears: that tells how
// long after the pod's first instruction it was let in, by no clock but the
// pod's. How long the API had had the address is weft's part of that, or more: who
// has not begun to send is not heard.
func welcome(ctx context.Context, c *cluster.Cluster) error {
	return amongPair(ctx, c, letIn("newcomer"), []trip{{"other", "server", "tcp", 80, false}}, (*folk).welcome)
}

func (f *folk) welcome(ctx context.Context) error {
	server := f.at["server"]
	heard := &register{first: map[netip.Addr]request{}}
	told, err := tellAddresses(ctx, f.c, "app", "role=newcomer")
	if err != nil {
		return err
	}
	defer told.end()
	for _, s := range []struct {
		network string
		request byte // type of echo requests: RFC 792, RFC 4443 section 4.1
	}{{"ip4:icmp", 8}, {"ip6:ipv6-icmp", 128}} {
		var l net.PacketConn
		err := server.Do(func() (err error) {
			l, err = new(net.ListenConfig).ListenPacket(ctx, s.network, "")
			return err
		})
		if err != nil {
			return err
		}
		defer l.Close()
		go heard.keep(l, s.request)
	}
	elsewhere := `      affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: NotIn, values: [` + server.Node + `]}]}]}}}
`
	if err := f.c.Apply(ctx, senderManifest("app", "newcomer", 0, elsewhere, server.IPs)); err != nil {
		return err
	}
	var all []arrival
	for range newcomers / newcomersAtOnce {
		some, err := f.newcomers(ctx, heard, told, newcomersAtOnce*len(server.IPs))
		if err != nil {
			return err
		}
		all = append(all, some...)
	}
	slices.SortFunc(all, func(a, b arrival) int { return cmp.Compare(a.after, b.after) })
	p50, p99 := ranked(all, 50).after, ranked(all, 99).after
	f.c.Progress("  %d addresses of new pods were let in on another node %s after the first instruction, p99 %s; the last:", len(all), p50, p99)
	for _, a := range all[len(all)-lastNamed:] {
		f.c.Progress("    %s of %s after %s, %s", a.addr, a.pod, a.after, a.told)
	}
	if p99 > heardWithin {
		return fmt.Errorf("p99 is %s, want at most %s", p99, heardWithin)
	}
	return nil
}

// newcomers starts pods that have so many addresses, and ends them when all of
// these have been heard.
func (f *folk) newcomers(ctx context.Context, heard *register, told *telling, addrs int) (out []arrival, err error) {
	heard.forget()
	told.forget()
	if err := scaleTo(ctx, f.c, "app", "newcomer", newcomersAtOnce); err != nil {
		return nil, err
	}
	pods, err := f.c.Pods(ctx, "app", "role=newcomer")
	if err != nil {
		return nil, err
	}
	err = eventually(ctx, time.Minute, func(context.Context) error {
		if out = heard.of(pods); len(out) < addrs {
			return fmt.Errorf("%d of %d addresses of new pods are heard", len(out), addrs)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for i := range out {
		out[i].told = told.by(out[i].addr, out[i].at)
	}
	return out, scaleTo(ctx, f.c, "app", "newcomer", 0)
}

// An arrival is an address that was heard.
type arrival struct {
	pod   string
	addr  netip.Addr
	after time.Duration // since the pod's first echo request
	at    time.Time
	told  string // how long the API had had the address, as far as kubectl tells it at once
}

// A register remembers the number of the first echo request of each source.
type register struct {
	mu    sync.Mutex
	first map[netip.Addr]request
}

// A request is the number of an echo request, and when it was heard.
type request struct {
	number int
	at     time.Time
}

func (r *register) keep(l net.PacketConn, kind byte) {
	buf := make([]byte, 1500)
	for {
		n, from, err := l.ReadFrom(buf)
		if err != nil {
			return
		}
		ip, ok := from.(*net.IPAddr)
		if !ok || n < 8 || buf[0] != kind {
			continue
		}
		a, _ := netip.AddrFromSlice(ip.IP) // none is nobody's
		r.mu.Lock()
		if _, known := r.first[a.Unmap()]; !known {
			r.first[a.Unmap()] = request{int(binary.BigEndian.Uint16(buf[6:])), time.Now()}
		}
		r.mu.Unlock()
	}
}

func (r *register) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.first)
}

// of returns the arrivals of those addresses of pods that were heard.
func (r *register) of(pods []cluster.Pod) []arrival {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []arrival
	for _, p := range pods {
		for _, a := range p.IPs {
			if q, ok := r.first[a]; ok {
				out = append(out, arrival{pod: p.Name, addr: a, after: time.Duration(q.number-1) * pingEvery, at: q.at})
			}
		}
	}
	return out
}

// A telling remembers since when the API has addresses of pods.
type telling struct {
	mu    sync.Mutex
	since map[netip.Addr]time.Time
	end   func()
}

// tellAddresses watches pods until end is called.
func tellAddresses(ctx context.Context, c *cluster.Cluster, namespace, label string) (*telling, error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := c.Command(ctx, "kubectl", "-n", namespace, "get", "pods", "-l", label, "--watch", "--no-headers", "-o", "custom-columns=IPS:.status.podIPs[*].ip")
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = c.Fabric().Start(cmd)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	t := &telling{since: map[netip.Addr]time.Time{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			for word := range strings.SplitSeq(strings.TrimSpace(lines.Text()), ",") {
				if a, err := netip.ParseAddr(word); err == nil {
					t.tell(a)
				}
			}
		}
	}()
	t.end = func() {
		cancel()
		<-done
		_ = cmd.Wait() // it was killed
	}
	return t, nil
}

func (t *telling) tell(a netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.since[a].IsZero() {
		t.since[a] = time.Now()
	}
}

func (t *telling) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.since)
}

// by says how long the API had had a at a time.
func (t *telling) by(a netip.Addr, at time.Time) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	since, ok := t.since[a]
	if !ok {
		return "which kubectl --watch has not told"
	}
	return fmt.Sprintf("when the API had had it for %s", at.Sub(since).Round(time.Millisecond))
}
