// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// TestNoAnswer: a call ends with its deadline when the kernel is silent, and
// the socket stays fit for use.
func TestNoAnswer(t *testing.T) {
	enterNetns(t)
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = c.turn(ctx, func() (int, error) { _, err := c.receive(); return 0, err })
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want a deadline that is exceeded", err)
	}
	if msgs, err := c.do(t.Context(), linksRequest()); err != nil || len(msgs) != 1 {
		t.Errorf("and after it: %d messages, %v", len(msgs), err)
	}
}

// TestForgedAnswer: what another process sends to our socket is no answer.
func TestForgedAnswer(t *testing.T) {
	enterNetns(t)
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	forger, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer forger.close()
	forged := &nl.NetlinkRequest{NlMsghdr: unix.NlMsghdr{Len: unix.SizeofNlMsghdr, Type: unix.NLMSG_DONE, Seq: c.seq + 1, Pid: c.pid}}
	err = unix.Sendto(forger.sock.GetFd(), forged.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: c.pid})
	if err != nil {
		t.Fatal(err)
	}
	if msgs, err := c.do(t.Context(), linksRequest()); err != nil || len(msgs) != 1 {
		t.Errorf("%d messages, %v, want the loopback device", len(msgs), err)
	}
}

// linksRequest lists all devices: of a fresh namespace, one.
func linksRequest() *nl.NetlinkRequest {
	return request(unix.RTM_GETLINK, unix.NLM_F_DUMP, nl.NewIfInfomsg(unix.AF_UNSPEC))
}

// TestChangesAfterADumpGivenUp: changes that are sent while a dump is not read
// to its end do not make the socket wait for an end that has come.
func TestChangesAfterADumpGivenUp(t *testing.T) {
	enterNetns(t)
	var lines strings.Builder
	for i := range 50 {
		fmt.Fprintf(&lines, "link add a%d type veth peer name b%d\n", i, i)
	}
	batch(t, lines.String())
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := c.do(&dying{Context: ctx, after: 1}, linksRequest()); !errors.Is(err, context.Canceled) || !c.open {
		t.Fatalf("%v, open %v: want a dump that was given up", err, c.open)
	}
	change := request(unix.RTM_NEWLINK, 0, &nl.IfInfomsg{IfInfomsg: unix.IfInfomsg{Index: 1, Change: unix.IFF_UP, Flags: unix.IFF_UP}})
	if errs := c.batch(ctx, []*nl.NetlinkRequest{change}); errs[0] != nil {
		t.Error(errs[0])
	}
	if msgs, err := c.do(ctx, linksRequest()); err != nil || len(msgs) != 101 {
		t.Errorf("and after them: %d messages, %v", len(msgs), err)
	}
}
