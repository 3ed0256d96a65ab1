// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// heard counts what a monitor reports.
type heard struct {
	own, host chan struct{}
	done      chan error
}

// listen runs m until the test ends.
func listen(t *testing.T, m *Monitor) *heard {
	t.Helper()
	h := &heard{make(chan struct{}, 10000), make(chan struct{}, 10000), make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		h.done <- m.Run(ctx, func() { h.own <- struct{}{} }, func() { h.host <- struct{}{} })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-h.done; !errors.Is(err, context.Canceled) {
			t.Errorf("Run ended with %v", err)
		}
	})
	return h
}

func await(t *testing.T, c <-chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: not heard of", what)
	}
}

func drain(c <-chan struct{}) (n int) {
	for {
		select {
		case <-c:
			n++
		default:
			return n
		}
	}
}

func openMonitor(t *testing.T) *Monitor {
	t.Helper()
	m, err := NewMonitor([]string{"weft.1"})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMonitorHearsEveryDrift(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	h := listen(t, openMonitor(t))
	// The device is made after the monitor, as at an agent's first start.
	for _, c := range []string{
		"ip link add weft.1 type vxlan id 1 dev u0 local 10.0.0.1 dstport 8472 nolearning",
		"ip link set weft.1 up",
		"ip addr add 10.42.1.0/32 dev weft.1",
		"ip neigh add 10.42.2.0 lladdr 02:00:00:00:00:02 dev weft.1 nud permanent",
		"bridge fdb add 02:00:00:00:00:02 dev weft.1 dst 10.0.0.2 self permanent",
		"ip route add 10.42.2.0/24 via 10.42.2.0 dev weft.1 onlink proto 87",
		"ip route del 10.42.2.0/24",
		"bridge fdb del 02:00:00:00:00:02 dev weft.1 dst 10.0.0.2 self",
		"ip neigh del 10.42.2.0 dev weft.1",
		"ip addr del 10.42.1.0/32 dev weft.1",
		"ip link set weft.1 address 02:00:00:00:00:99",
		"ip link set weft.1 mtu 1300",
		"ip link set weft.1 down",
		"ip link set weft.1 name other",
		"ip link set other name weft.1",
		"ip link del weft.1",
	} {
		drain(h.own)
		run(t, c)
		await(t, h.own, c)
		time.Sleep(20 * time.Millisecond) // let the rest of this command's events come
	}
}

// A route of ours that another takes the place of is told by the message of
// the other, on another device.
func TestMonitorHearsAReplacedRoute(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	run(t, "ip link add weft.1 type vxlan id 1 dev u0 local 10.0.0.1 dstport 8472 nolearning")
	run(t, "ip link set weft.1 up")
	run(t, "ip route add 10.42.2.0/24 via 10.42.2.0 dev weft.1 onlink proto 87 metric 7")
	h := listen(t, openMonitor(t))
	run(t, "ip route replace 10.42.2.0/24 via 10.0.0.7 dev u0 metric 7")
	await(t, h.own, "a replaced route")
}

func TestMonitorHearsTheUnderlay(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	h := listen(t, openMonitor(t))
	for _, c := range []string{
		"ip addr add 10.0.0.11/24 dev u0", "ip addr del 10.0.0.1/24 dev u0", "ip link set u0 mtu 1400",
		"ip link set u0 down", "ip link set u0 name v0", "ip link set v0 up", "ip link del v0",
	} {
		drain(h.host)
		run(t, c)
		await(t, h.host, c)
		time.Sleep(20 * time.Millisecond)
	}
}

// Neighbours that come and go on the underlay and on pods' ports must not
// cost an audit each.
func TestMonitorIgnoresOtherNeighbours(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	run(t, "ip link add weft.1 type vxlan id 1 dev u0 local 10.0.0.1 dstport 8472 nolearning")
	h := listen(t, openMonitor(t))
	for i := 2; i < 50; i++ {
		run(t, fmt.Sprintf("ip neigh add 10.0.0.%d lladdr 02:00:00:00:00:02 dev u0", i))
	}
	run(t, "ip route add 192.0.2.0/24 dev u0")
	run(t, "ip addr add 10.0.0.50/24 dev u0") // events are in order: this is the last
	await(t, h.host, "the last command")
	if n := drain(h.own); n != 0 {
		t.Errorf("%d calls about our devices, want none", n)
	}
}

// flannel dies of this (nil dereference in its watcher): the kernel drops
// events when nobody reads them in time.
func TestMonitorSurvivesOverruns(t *testing.T) {
	enterNetns(t)
	addUnderlay(t)
	m := openMonitor(t)
	if err := m.sock.SetReceiveBufferSize(4096, true); err != nil {
		t.Fatal(err)
	}
	var batch strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&batch, "neigh replace 10.0.%d.%d lladdr 02:00:00:00:00:02 dev u0\n", 1+i/200, 1+i%200)
	}
	file := t.TempDir() + "/batch"
	if err := os.WriteFile(file, []byte(batch.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "-batch", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	h := listen(t, m)
	await(t, h.own, "an overrun")
	await(t, h.host, "an overrun")
	run(t, "ip addr add 10.0.0.11/24 dev u0") // and it goes on
	await(t, h.host, "an event after the overrun")
}
