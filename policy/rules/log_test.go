// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"weft.dev/weft/policy"
)

// Some of what is refused is copied to who listens, with the direction.
func TestRefusedPacketsAreLogged(t *testing.T) {
	w := newWire(t)
	p := NewProgrammer(w.conn, params())
	if _, err := p.Sync(t.Context(), walled(), lease()); err != nil {
		t.Fatal(err)
	}
	var c *netlink.Conn
	w.router.do(func() (err error) { c, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); return err })
	t.Cleanup(func() { _ = c.Close() })
	// NFULNL_MSG_CONFIG with NFULA_CFG_CMD, NFULNL_CFG_CMD_BIND (linux/netfilter/nfnetlink_log.h).
	bind := append(binary.BigEndian.AppendUint16([]byte{0, 0}, DefaultLogGroup), 5, 0, 1, 0, 1, 0, 0, 0)
	if _, err := c.Execute(netlink.Message{Header: netlink.Header{Type: unix.NFNL_SUBSYS_ULOG<<8 | 1, Flags: netlink.Request | netlink.Acknowledge}, Data: bind}); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	for _, k := range []policy.Packet{
		{Src: addr("1.0.0.1"), Dst: addr("10.42.1.2"), Proto: policy.UDP, Port: 7},
		{Src: addr("fd42:0:0:1::3"), Dst: addr("2001:db8::1"), Proto: policy.UDP, Port: 7},
	} {
		const perFlood = 100
		for range perFlood {
			w.send(k, transport(k, 40000))
		}
		want := map[bool]string{false: "weft denied ingress", true: "weft denied egress"}[k.Src.Is6()]
		n := 0
		for n < logBurst {
			msgs, err := c.Receive()
			if err != nil {
				t.Fatalf("%s: %d of %d copies: %v", want, n, logBurst, err)
			}
			for _, m := range msgs {
				if strings.Contains(string(m.Data), want) {
					n++
				}
			}
		}
		if n >= perFlood {
			t.Errorf("%s: %d copies of %d packets", want, n, perFlood)
		}
	}
}
