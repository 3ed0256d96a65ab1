// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/internal/nshost"
)

func TestMain(m *testing.M) { os.Exit(nshost.Main(m)) }

func pod(port string, n byte) nft.SpoofPod {
	return nft.SpoofPod{Port: port, MAC: net.HardwareAddr{2, 0, 0, 0, 0, n}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 42, 0, n})}}
}

// lab is a Guard in a namespace.
type lab struct {
	*nshost.Host
	conn *nft.Conn
	*Guard
}

func newLab(t *testing.T) *lab {
	l := &lab{Host: nshost.New(t)}
	l.Do(func() (err error) { l.conn, err = nft.Dial(); return err })
	t.Cleanup(func() { _ = l.conn.Close() })
	l.Guard = New(l.conn)
	return l
}

func (l *lab) update(look bool, pods []nft.SpoofPod, closed ...string) []error {
	l.T.Helper()
	left, err := l.Update(l.T.Context(), pods, closed, look)
	if err != nil {
		l.T.Fatal(err)
	}
	return left
}

// holds fails unless the kernel has exactly the table of these pods.
func (l *lab) holds(when string, pods []nft.SpoofPod, closed ...string) {
	l.T.Helper()
	have, err := l.conn.Dump(l.T.Context(), Table())
	if err != nil {
		l.T.Fatal(err)
	}
	want, _ := Desired(pods, closed)
	if plan := nft.Diff(want, have); !plan.Empty() {
		l.T.Errorf("%s, there is still to do:\n%s", when, plan)
	}
}

func TestPodsComeAndGo(t *testing.T) {
	l := newLab(t)
	for when, pods := range [][]nft.SpoofPod{nil, {pod("veth1", 1)}, {pod("veth1", 1), pod("veth2", 2)}, {pod("veth2", 2)}, {pod("veth2", 3)}, nil} {
		l.update(false, pods, "veth7")
		l.holds(string(rune('0'+when)), pods, "veth7")
	}
	l.update(false, nil)
	l.holds("nothing closed", nil)
}

// What somebody else does is undone when the Guard is told of it, and when it
// looks.
func TestTampering(t *testing.T) {
	pods := []nft.SpoofPod{pod("veth1", 1), pod("veth2", 2)}
	for _, script := range []string{
		"flush ruleset", "delete table bridge weft_guard", "flush set bridge weft_guard ports",
		"flush chain bridge weft_guard from_pod", "add element bridge weft_guard closed { \"veth9\" }",
		"delete element bridge weft_guard ports { \"veth1\" }",
	} {
		for _, look := range []bool{true, false} {
			l := newLab(t)
			l.update(false, pods)
			l.NFT(script)
			if !look {
				l.Touched()
			}
			l.update(look, pods)
			l.holds(script, pods)
		}
	}
}

// A change that meets another table than the last call left is made all the
// same.
func TestChangeOfAnotherTable(t *testing.T) {
	for _, script := range []string{"flush ruleset", "delete element bridge weft_guard ports { \"veth1\" }"} {
		l := newLab(t)
		l.update(false, []nft.SpoofPod{pod("veth1", 1)})
		l.NFT(script)
		l.update(false, nil)
		l.holds(script, nil)
	}
}

// A pod that cannot be described leaves the others guarded.
func TestWhoIsLeftOut(t *testing.T) {
	l := newLab(t)
	left := l.update(false, []nft.SpoofPod{pod("", 1), {Port: "veth3"}, pod("veth2", 2)}, "a name too long for a port")
	if len(left) != 3 || !strings.Contains(left[1].Error(), "MAC") {
		t.Errorf("left out: %v", left)
	}
	l.holds("after", []nft.SpoofPod{pod("veth2", 2)})
}

func TestRemove(t *testing.T) {
	l := newLab(t)
	for _, want := range []bool{false, true, false} {
		if want {
			l.update(false, []nft.SpoofPod{pod("veth1", 1)})
		}
		if removed, err := l.Remove(t.Context()); removed != want || err != nil {
			t.Errorf("removed %t, want %t: %v", removed, want, err)
		}
	}
	if out := l.Run("nft list ruleset"); out != "" {
		t.Errorf("left: %s", out)
	}
}
