// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/e2e/parts"
	"weft.dev/weft/tests/netlab"
)

// A person is a pod that policies are tried on: it does nothing itself, servers
// and clients are put into its network.
type person struct {
	name, namespace string
	labels          string // in YAML
	node            int    // index of Nodes
	host            bool   // on the host's network
	tcp, udp        []int  // ports that it answers at
}

// folk are persons that run, by name.
type folk struct {
	c   *cluster.Cluster
	at  map[string]*settled
	end func()
}

// settled is a person that runs.
type settled struct {
	cluster.Pod
	*netlab.Place
}

// Name is the pod's.
func (s *settled) Name() string { return s.Pod.Name }

// settle starts persons in namespaces, whose labels are given, and their servers.
// leave ends them.
func settle(ctx context.Context, c *cluster.Cluster, namespaces map[string]string, people []person) (*folk, error) {
	ctx, cancel := context.WithCancel(ctx)
	f := &folk{c: c, at: map[string]*settled{}, end: cancel}
	var b strings.Builder
	for name, labels := range namespaces {
		fmt.Fprintf(&b, "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s, labels: {%s}}\n---\n", name, labels)
	}
	for _, p := range people {
		fmt.Fprintf(&b, `apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s, labels: {folk: "yes", %s}}
spec:
  nodeName: %s
  hostNetwork: %t
  terminationGracePeriodSeconds: 0
  enableServiceLinks: false
  containers:
  - {name: nothing, image: %q, imagePullPolicy: Never}
---
`, p.name, p.namespace, p.labels, c.Nodes()[p.node].Name(), p.host, parts.PauseImage)
	}
	err := c.Apply(ctx, b.String())
	for _, p := range people {
		if err == nil {
			err = f.join(ctx, p)
		}
	}
	if err != nil {
		return nil, errors.Join(err, f.leave(context.WithoutCancel(ctx), namespaces))
	}
	return f, nil
}

// join waits for a person to run, and starts its servers.
func (f *folk) join(ctx context.Context, p person) error {
	err := eventually(ctx, 2*time.Minute, func(ctx context.Context) error {
		pods, err := f.c.Pods(ctx, p.namespace, "folk=yes")
		if err != nil {
			return err
		}
		i := slices.IndexFunc(pods, func(o cluster.Pod) bool { return o.Name == p.name })
		if i < 0 || pods[i].Phase != "Running" || len(pods[i].IPs) < len(f.c.Config().Families()) && !p.host {
			return fmt.Errorf("pod %s/%s does not run yet", p.namespace, p.name)
		}
		place, err := pods[i].Place()
		if err != nil {
			return err
		}
		f.at[p.name] = &settled{Pod: pods[i], Place: place}
		return nil
	})
	if err != nil {
		return err
	}
	s := f.at[p.name]
	for _, port := range p.tcp {
		l, err := s.Listen(ctx, "tcp", fmt.Sprint(":", port))
		if err != nil {
			return err
		}
		context.AfterFunc(ctx, func() { l.Close() })
		go serveTCP(l)
	}
	for _, port := range p.udp {
		var l net.PacketConn
		err := s.Do(func() (err error) {
			l, err = new(net.ListenConfig).ListenPacket(ctx, "udp", fmt.Sprint(":", port))
			return err
		})
		if err != nil {
			return fmt.Errorf("on %s: %w", p.name, err)
		}
		context.AfterFunc(ctx, func() { l.Close() })
		go serveUDP(l)
	}
	return nil
}

// serveTCP sends back what it gets.
func serveTCP(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func serveUDP(l net.PacketConn) {
	buf := make([]byte, 1500)
	for {
		n, from, err := l.ReadFrom(buf)
		if err != nil {
			return
		}
		_, _ = l.WriteTo(buf[:n], from)
	}
}

// leave ends the servers and deletes the namespaces.
func (f *folk) leave(ctx context.Context, namespaces map[string]string) error {
	f.end()
	for _, s := range f.at {
		s.Close()
	}
	args := []string{"delete", "namespace", "--ignore-not-found", "--wait=true"}
	for name := range namespaces {
		args = append(args, name)
	}
	_, err := f.c.Kubectl(ctx, args...)
	return err
}

// A trip is one question: may from talk to a port of to.
type trip struct {
	from, to string // persons; both may be addresses: from is the fabric's then
	network  string // tcp or udp
	port     int
	want     bool
}

// try makes all trips, in all families that both ends have, until each turns out
// as it should, and then makes those that are denied thrice more.
func (f *folk) try(ctx context.Context, trips []trip) error {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	for _, t := range trips {
		for _, to := range f.addrs(t) {
			wg.Go(func() {
				if err := f.travel(ctx, t, to); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// addrs are where a trip goes.
func (f *folk) addrs(t trip) []netip.Addr {
	if a, err := netip.ParseAddr(t.to); err == nil {
		return []netip.Addr{a}
	}
	var out []netip.Addr
	for _, a := range f.at[t.to].IPs {
		if slices.Contains(f.c.Config().Families(), subnet.FamilyOf(a)) {
			out = append(out, a)
		}
	}
	return out
}

const (
	// answerTime is how long a trip waits for its answer.
	answerTime = 600 * time.Millisecond
	// settleTime is how long it may take until a policy's change is in force.
	settleTime = 15 * time.Second
)

func (f *folk) travel(ctx context.Context, t trip, to netip.Addr) error {
	name := fmt.Sprintf("%s to %s at %s, %s port %d", t.from, t.to, to, t.network, t.port)
	once := func(ctx context.Context) error {
		err := f.ask(ctx, t, to)
		switch {
		case t.want && err != nil:
			return fmt.Errorf("%s: %w", name, err)
		case !t.want && err == nil:
			return fmt.Errorf("%s: it passes", name)
		}
		return nil
	}
	if err := eventually(ctx, settleTime, once); err != nil || t.want {
		return err
	}
	for range 3 {
		if err := once(ctx); err != nil {
			return err
		}
	}
	return nil
}

// ask sends a message on a trip and waits for its echo.
func (f *folk) ask(ctx context.Context, t trip, to netip.Addr) error {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	place, d := f.c.Fabric(), net.Dialer{}
	if source, err := netip.ParseAddr(t.from); err == nil {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	} else {
		place = f.at[t.from].Place
	}
	var conn net.Conn
	err := place.Do(func() (err error) {
		conn, err = d.DialContext(ctx, t.network, netip.AddrPortFrom(to, uint16(t.port)).String())
		return err
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	said, heard := []byte("hello"), make([]byte, 5)
	if _, err := conn.Write(said); err != nil {
		return err
	}
	if _, err := io.ReadFull(conn, heard); err != nil {
		return err
	}
	if string(heard) != string(said) {
		return fmt.Errorf("said %q, heard %q", said, heard)
	}
	return nil
}
