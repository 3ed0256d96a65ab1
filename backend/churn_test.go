// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// TestDumpUnderChange: devices come and go all the time while there are more
// than one message can list. The kernel marks such a dump as interrupted, and
// entries may be missing from it: it is read again, so that what stays is
// always there.
func TestDumpUnderChange(t *testing.T) {
	enterNetns(t)
	const stable = 120
	for i := range stable / 2 {
		run(t, fmt.Sprintf("ip link add s%d type veth peer name p%d", i, i))
	}
	stop := churn(t)
	defer stop()
	k := newKernel(t)
	interrupted := 0
	for range 200 {
		_, err := k.conn.do(t.Context(), request(unix.RTM_GETLINK, unix.NLM_F_DUMP, nl.NewIfInfomsg(unix.AF_UNSPEC)))
		if errors.Is(err, nl.ErrDumpInterrupted) {
			interrupted++
		}
		nics, err := k.nics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, n2 := range nics {
			if n2.kind == "veth" {
				n++
			}
		}
		if n != stable {
			t.Fatalf("%d of %d devices listed", n, stable)
		}
	}
	t.Logf("%d of 200 single dumps were interrupted", interrupted)
}

// churn adds and deletes a device in the caller's namespace until stopped.
func churn(t *testing.T) (stop func()) {
	t.Helper()
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with this goroutine
		done <- func() error {
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			k, err := New(Options{Devices: []string{"churn"}})
			if err != nil {
				return err
			}
			defer k.Close()
			l := link(subnet.IPv4)
			l.Name, l.Underlay, l.Local = "churn", "lo", ip("127.0.0.1")
			for ctx.Err() == nil {
				if err := k.Apply(context.WithoutCancel(ctx), overlay.Changes{add(l), del(l)}); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("churn: %v", err)
		}
		ns.Close()
	}
}

// FuzzDecode feeds the decoders what no kernel sends: they must not panic,
// and a message that they accept has a valid entry.
func FuzzDecode(f *testing.F) {
	for _, b := range realMessages(f) {
		f.Add(b)
	}
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, 64))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := decodeLink(b); err == nil {
			decodeVXLAN(l.data)
			rpFilter(l.afSpec)
			addrGen(l.afSpec)
		}
		if p, _, ok := decodeAddr(b); ok && !p.IsValid() {
			t.Errorf("address %v", p)
		}
		if a, _, ok := decodeNICAddr(b); ok && !a.ip.IsValid() {
			t.Errorf("device address %v", a)
		}
		if n, _, ok := decodeNeigh(b); ok && (!n.IP.IsValid() || n.IP.IsMulticast()) {
			t.Errorf("neighbour %v", n)
		}
		if e, ok := decodeFDB(b); ok && !e.dst.IsValid() && e.nhid == 0 {
			t.Errorf("FDB entry %v", e)
		}
		for _, typ := range []uint16{unix.NLMSG_DONE, unix.NLMSG_ERROR} {
			for _, flags := range []uint16{0, unix.NLM_F_ACK_TLVS, unix.NLM_F_ACK_TLVS | unix.NLM_F_CAPPED} {
				_ = outcome(syscall.NetlinkMessage{Header: syscall.NlMsghdr{Type: typ, Flags: flags}, Data: b})
			}
		}
		for m := range messages(b) {
			if m.Header.Len != uint32(unix.SizeofNlMsghdr+len(m.Data)) {
				t.Errorf("message %v", m)
			}
		}
		for _, family := range subnet.Families() {
			if r, ok := decodeRoute(b, family); ok {
				if !r.dst.IsValid() || len(r.hops) == 0 {
					t.Errorf("route %v", r)
				}
				r.on(device{name: "weft.1", index: 3})
				r.deleteRequest().Serialize()
			}
		}
	})
}

// realMessages returns what this kernel says of a node in flannel's shape and
// of the odd entries of TestOddEntries.
func realMessages(f *testing.F) [][]byte {
	f.Helper()
	done := make(chan [][]byte)
	go func() { // the namespace ends with this goroutine
		var out [][]byte
		defer func() { done <- out }()
		runtime.LockOSThread()
		if unix.Unshare(unix.CLONE_NEWNET) != nil {
			return
		}
		c, err := dial()
		if err != nil {
			return
		}
		defer c.close()
		for _, cmd := range append([]string{"ip link set lo up", "ip link add u0 type veth peer name u1", "ip addr add 10.0.0.1/24 dev u0",
			"ip link set u0 up", "ip link add weft.1 type vxlan id 1 dev u0 local 10.0.0.1 dstport 8472", "ip link set weft.1 up"}, oddCommands()...) {
			_, _ = try(cmd)
		}
		for _, r := range []*nl.NetlinkRequest{
			request(unix.RTM_GETLINK, unix.NLM_F_DUMP, nl.NewIfInfomsg(unix.AF_UNSPEC)),
			request(unix.RTM_GETADDR, unix.NLM_F_DUMP, ifaddrmsg{}),
			request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, ndmsg{}),
			request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, ndmsg{family: unix.AF_BRIDGE}),
			request(unix.RTM_GETROUTE, unix.NLM_F_DUMP, &nl.RtMsg{}),
		} {
			msgs, _ := c.do(context.Background(), r)
			out = append(out, msgs...)
		}
	}()
	out := <-done
	if len(out) < 20 {
		f.Fatalf("only %d messages from the kernel", len(out))
	}
	return out
}

func oddCommands() (out []string) {
	for _, c := range oddCases() {
		for _, s := range c.setup {
			if !slices.Contains(out, s) && !strings.HasPrefix(s, "ip link") {
				out = append(out, s)
			}
		}
	}
	return out
}
