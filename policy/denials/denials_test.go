// SPDX-License-Identifier: Apache-2.0

package denials

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sirupsen/logrus"
	"k8s.io/apimachinery/pkg/labels"

	"weft.dev/weft/policy"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// packet is k as it is on the wire, with IPv6 extension headers before it.
func packet(k policy.Packet, before ...[]byte) []byte {
	transport := binary.BigEndian.AppendUint16([]byte{0x9c, 0x40}, k.Port)
	if k.Src.Is4() {
		b := make([]byte, 20)
		b[0], b[9] = 0x45, k.Proto
		copy(b[12:], k.Src.AsSlice())
		copy(b[16:], k.Dst.AsSlice())
		return append(b, transport...)
	}
	b := make([]byte, 40)
	b[0], b[6] = 0x60, k.Proto
	copy(b[8:], k.Src.AsSlice())
	copy(b[24:], k.Dst.AsSlice())
	last := 6
	for _, h := range before {
		kind := h[0]
		h = bytes.Clone(h[1:])
		h[0], b[last] = b[last], kind
		last = len(b)
		b = append(b, h...)
	}
	return append(b, transport...)
}

func TestParse(t *testing.T) {
	v4 := policy.Packet{Src: addr("10.0.0.1"), Dst: addr("10.0.0.2"), Proto: policy.TCP, Port: 80}
	v6 := policy.Packet{Src: addr("fd00::1"), Dst: addr("fd00::2"), Proto: policy.UDP, Port: 53}
	icmp := v4
	icmp.Proto, icmp.Port = 1, 0
	hop, auth := []byte{hopByHop, 0, 0, 1, 4, 0, 0, 0, 0}, []byte{authentic, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	first := []byte{fragment, 0, 0, 0, 1, 0, 0, 0, 7}
	for name, c := range map[string]struct {
		packet []byte
		want   policy.Packet
	}{
		"IPv4": {packet(v4), v4}, "IPv6": {packet(v6), v6}, "ICMP": {packet(icmp), icmp},
		"options": {packet(v6, hop), v6}, "more": {packet(v6, hop, auth, first), v6},
	} {
		if got, _, ok := Parse(c.packet); !ok || got != c.want {
			t.Errorf("%s: %+v, %t, want %+v", name, got, ok, c.want)
		}
		for n := range len(c.packet) - 4 {
			if got, _, ok := Parse(c.packet[:n]); ok && c.want.Port != 0 {
				t.Errorf("%s: %d bytes are read as %+v", name, n, got)
			}
		}
	}
	later4, later6 := packet(v4), packet(v6, []byte{fragment, 0, 0, 1, 0, 0, 0, 0, 7})
	later4[7] = 1
	for _, b := range [][]byte{nil, {0x10}, later4, later6} {
		if got, _, ok := Parse(b); ok {
			t.Errorf("%x is read as %+v", b, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(packet(policy.Packet{Src: addr("10.0.0.1"), Dst: addr("10.0.0.2"), Proto: policy.TCP, Port: 80}))
	f.Add(packet(policy.Packet{Src: addr("fd00::1"), Dst: addr("fd00::2"), Proto: policy.UDP, Port: 53}, []byte{hopByHop, 0, 0, 1, 4, 0, 0, 0, 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if k, _, ok := Parse(b); ok && (!k.Src.IsValid() || k.Src.BitLen() != k.Dst.BitLen()) {
			t.Errorf("%x is read as %+v", b, k)
		}
	})
}

// One line says who may not reach whom, and because of what; it is not said
// again for a while.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := logrus.New()
		log.SetOutput(&out)
		log.SetFormatter(&logrus.TextFormatter{DisableColors: true, DisableTimestamp: true})
		web := &policy.Pod{Namespace: "shop", Name: "web", Node: "n", Labels: policy.NewLabels(nil), Addrs: []netip.Addr{addr("10.0.0.2")}}
		c := policy.Cluster{Pods: []*policy.Pod{web}, Policies: []*policy.Policy{{Namespace: "shop", Name: "shut", Subject: labels.Everything(), Isolates: [2]bool{true, false}}}}
		known := true
		l := New(log, func(k policy.Packet) (policy.Explanation, bool) { return c.Explain(k), known })
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		k := policy.Packet{Src: addr("10.0.9.9"), Dst: addr("10.0.0.2"), Proto: policy.TCP, Port: 80}
		tell := func(r Refusal) int {
			l.Tell(r)
			time.Sleep(2 * pause)
			synctest.Wait()
			return strings.Count(out.String(), "\n")
		}
		in := policy.Ingress
		for range 10 * waiting {
			l.Tell(Refusal{Direction: in, Packet: packet(k)})
		}
		tell(Refusal{Direction: in, Packet: packet(k)})
		want := `level=info msg="10.0.9.9 to pod shop/web (10.0.0.2), TCP port 80: ingress of shop/web is isolated by shop/shut" direction=ingress dst=10.0.0.2 op=deny pod=shop/web policies=shop/shut src=10.0.9.9` + "\n"
		if out.String() != want {
			t.Errorf("got\n%swant\n%s", out.String(), want)
		}
		if n := tell(Refusal{Direction: in, Packet: []byte("junk")}); n != 1 {
			t.Errorf("junk: %d lines", n)
		}
		// The answer to a question that is denied by now: from port 80 to the client's.
		answer := packet(policy.Packet{Src: k.Dst, Dst: k.Src, Proto: k.Proto, Port: 40000})
		binary.BigEndian.PutUint16(answer[20:], k.Port)
		if n := tell(Refusal{Direction: in, Answer: true, Packet: answer}); n != 1 {
			t.Errorf("an answer to what was said: %d lines\n%s", n, out.String())
		}
		time.Sleep(every)
		if n := tell(Refusal{Direction: in, Answer: true, Packet: answer}); n != 2 || strings.Count(out.String(), want) != 2 {
			t.Errorf("an answer alone: %d lines\n%s", n, out.String())
		}
		time.Sleep(every)
		if n := tell(Refusal{Direction: in, Packet: packet(k)}); n != 3 {
			t.Errorf("a while later: %d lines\n%s", n, out.String())
		}
		c.Policies = nil
		time.Sleep(every)
		if tell(Refusal{Direction: in, Packet: packet(k)}); !strings.Contains(out.String(), "is allowed by now") {
			t.Errorf("%s", out.String())
		}
		known = false
		time.Sleep(every)
		if n := tell(Refusal{Direction: in, Packet: packet(k)}); n != 4 {
			t.Errorf("said without knowing why: %s", out.String())
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
}
