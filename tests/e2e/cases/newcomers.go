// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/e2e/parts"
)

const (
	newcomers = 50
	// heardWithin is how long other nodes may take to know a new pod.
	heardWithin  = time.Second
	newcomerPort = 7070
)

// newcomerManifest runs pods on other nodes than the server's that tell it, again
// and again, when their first instruction ran, in microseconds since 1970.
func newcomerManifest(node string, to netip.Addr) string {
	return `apiVersion: apps/v1
kind: Deployment
metadata: {name: newcomer, namespace: app}
spec:
  replicas: ` + strconv.Itoa(newcomers) + `
  selector: {matchLabels: {role: newcomer}}
  template:
    metadata: {labels: {role: newcomer}}
    spec:
      terminationGracePeriodSeconds: 0
      enableServiceLinks: false
      affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: kubernetes.io/hostname, operator: NotIn, values: [` + node + `]}]}]}}}
      containers:
      - name: newcomer
        image: ` + parts.AgnhostImage + `
        imagePullPolicy: Never
        command: [bash, -c, 'at=${EPOCHREALTIME/[.,]/}; while :; do echo $at > /dev/udp/` + to.String() + `/` + strconv.Itoa(newcomerPort) + `; sleep 0.02; done']
`
}

// welcome starts pods that a policy lets reach a server on another node, and looks
// how long after their first instruction it hears them.
func welcome(ctx context.Context, c *cluster.Cluster) error {
	return amongPair(ctx, c, letIn("newcomer"), []trip{{"other", "server", "tcp", 80, false}}, (*folk).welcome)
}

func (f *folk) welcome(ctx context.Context) error {
	server := f.at["server"]
	heard := newRegister()
	var l net.PacketConn
	err := server.Do(func() (err error) {
		l, err = new(net.ListenConfig).ListenPacket(ctx, "udp", fmt.Sprint(":", newcomerPort))
		return err
	})
	if err != nil {
		return err
	}
	defer l.Close()
	go heard.keep(l)
	if err := f.c.Apply(ctx, newcomerManifest(server.Node, server.IPs[0])); err != nil {
		return err
	}
	err = eventually(ctx, 5*time.Minute, func(context.Context) error {
		if n := len(heard.list()); n < newcomers {
			return fmt.Errorf("%d of %d new pods are heard", n, newcomers)
		}
		return nil
	})
	if err != nil {
		return err
	}
	after := heard.list()
	slices.Sort(after)
	p99 := after[len(after)*99/100]
	f.c.Progress("  %d new pods were heard on another node after p50 %s, p99 %s", len(after), after[len(after)/2].Round(time.Millisecond), p99.Round(time.Millisecond))
	if p99 > heardWithin {
		return fmt.Errorf("p99 is %s, want at most %s", p99, heardWithin)
	}
	return nil
}

// A register remembers how long after its start each source was first heard.
type register struct {
	mu sync.Mutex
	by map[netip.Addr]time.Duration
}

func newRegister() *register { return &register{by: map[netip.Addr]time.Duration{}} }

func (r *register) keep(l net.PacketConn) {
	buf := make([]byte, 64)
	for {
		n, from, err := l.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		at, bad := strconv.ParseInt(strings.TrimSpace(string(buf[:n])), 10, 64)
		udp, ok := from.(*net.UDPAddr)
		if err != nil || bad != nil || !ok {
			continue
		}
		a := udp.AddrPort().Addr().Unmap()
		r.mu.Lock()
		if _, known := r.by[a]; !known {
			r.by[a] = time.Since(time.UnixMicro(at))
		}
		r.mu.Unlock()
	}
}

func (r *register) list() []time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]time.Duration, 0, len(r.by))
	for _, d := range r.by {
		out = append(out, d)
	}
	return out
}
