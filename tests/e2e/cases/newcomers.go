// SPDX-License-Identifier: Apache-2.0

package cases

import (
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
	if err := f.c.Apply(ctx, senderManifest("app", "newcomer", newcomers, elsewhere, server.IPs)); err != nil {
		return err
	}
	var after []time.Duration
	err := eventually(ctx, 5*time.Minute, func(ctx context.Context) error {
		pods, err := f.c.Pods(ctx, "app", "role=newcomer")
		if err != nil {
			return err
		}
		var addrs []netip.Addr
		for _, p := range pods {
			addrs = append(addrs, p.IPs...)
		}
		if after = heard.of(addrs); len(after) < newcomers*len(server.IPs) {
			return fmt.Errorf("%d of %d addresses of %d new pods are heard", len(after), len(addrs), len(pods))
		}
		return nil
	})
	if err != nil {
		return err
	}
	p99 := after[len(after)*99/100]
	f.c.Progress("  %d addresses of new pods were let in on another node %s after the first instruction, p99 %s, the last %s", len(after), after[len(after)/2], p99, after[len(after)-1])
	if p99 > heardWithin {
		return fmt.Errorf("p99 is %s, want at most %s", p99, heardWithin)
	}
	return nil
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

// of returns how long after their first request those of addrs were heard that
// were, ascending.
func (r *register) of(addrs []netip.Addr) []time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []time.Duration
	for _, a := range addrs {
		if n, ok := r.first[a]; ok {
			out = append(out, time.Duration(n-1)*pingEvery)
		}
	}
	slices.Sort(out)
	return out
}
