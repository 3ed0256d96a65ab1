// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"weft.dev/weft/tests/e2e/cluster"
)

const (
	newcomers = 50
	// newcomersAtOnce is few enough for kubelets that share a machine to tell the
	// API of a pod's addresses about when its container starts: other nodes have
	// them from there.
	newcomersAtOnce = 10
	// heardWithin is how long other nodes may take to let a new pod in, at the
	// 99th percentile.
	heardWithin = time.Second
)

// welcome starts pods that a policy lets reach a server on another node, and
// looks which of their echo requests is the first that it hears: that tells how
// long after the pod's first instruction it was let in, by no clock but the
// pod's.
func welcome(ctx context.Context, c *cluster.Cluster) error {
	return amongPair(ctx, c, letIn("newcomer"), []trip{{"other", "server", "tcp", 80, false}}, (*folk).welcome)
}

func (f *folk) welcome(ctx context.Context) error {
	server := f.at["server"]
	heard := &register{first: map[netip.Addr]int{}}
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
		some, err := f.newcomers(ctx, heard, newcomersAtOnce*len(server.IPs))
		if err != nil {
			return err
		}
		all = append(all, some...)
	}
	slices.SortFunc(all, func(a, b arrival) int { return cmp.Compare(a.after, b.after) })
	last := all[len(all)-1]
	p50, p99 := ranked(all, 50).after, ranked(all, 99).after
	f.c.Progress("  %d addresses of new pods were let in on another node %s after the first instruction, p99 %s, the last, %s of %s, %s", len(all), p50, p99, last.addr, last.pod, last.after)
	if p99 > heardWithin {
		return fmt.Errorf("p99 is %s, want at most %s", p99, heardWithin)
	}
	return nil
}

// newcomers starts pods that have so many addresses, and ends them when all of
// these have been heard.
func (f *folk) newcomers(ctx context.Context, heard *register, addrs int) (out []arrival, err error) {
	heard.forget()
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
	return out, scaleTo(ctx, f.c, "app", "newcomer", 0)
}

// An arrival is how long after its pod's first echo request an address was heard.
type arrival struct {
	pod   string
	addr  netip.Addr
	after time.Duration
}

// A register remembers the number of the first echo request of each source.
type register struct {
	mu    sync.Mutex
	first map[netip.Addr]int
}

func (r *register) keep(l net.PacketConn, request byte) {
	buf := make([]byte, 1500)
	for {
		n, from, err := l.ReadFrom(buf)
		if err != nil {
			return
		}
		ip, ok := from.(*net.IPAddr)
		if !ok || n < 8 || buf[0] != request {
			continue
		}
		a, _ := netip.AddrFromSlice(ip.IP) // none is nobody's
		r.mu.Lock()
		if _, known := r.first[a.Unmap()]; !known {
			r.first[a.Unmap()] = int(binary.BigEndian.Uint16(buf[6:]))
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
			if n, ok := r.first[a]; ok {
				out = append(out, arrival{p.Name, a, time.Duration(n-1) * pingEvery})
			}
		}
	}
	return out
}
