// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"net/netip"
	"os"
	"strings"
	"testing"

	"weft.dev/weft/internal/nshost"
)

func TestMain(m *testing.M) { os.Exit(nshost.Main(m)) }

func dial(t testing.TB, h *nshost.Host) *Conn {
	t.Helper()
	var c *Conn
	h.Do(func() (err error) { c, err = Dial(); return err })
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// install makes the kernel hold want and checks that it does.
func install(t testing.TB, c *Conn, want Desired) {
	t.Helper()
	if err := c.Apply(t.Context(), Diff(want, mustDump(t, c, want.Table))); err != nil {
		t.Fatal(err)
	}
	if again := Diff(want, mustDump(t, c, want.Table)); !again.Empty() {
		t.Fatalf("applied, and still to do:\n%s", again)
	}
}

func mustDump(t testing.TB, c *Conn, table Table) Content {
	t.Helper()
	have, err := c.Dump(t.Context(), table)
	if err != nil {
		t.Fatal(err)
	}
	return have
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, addr(s))
	}
	return out
}

func TestInstallDumpsEqualAndLists(t *testing.T) {
	for name, change := range map[string]func(*node){
		"bind":    func(*node) {},
		"peers":   func(p *node) { p.Guard = GuardPeers },
		"off":     func(p *node) { p.Guard = GuardOff; p.Masquerade = false },
		"open":    func(p *node) { p.opens() },
		"minimal": func(p *node) { *p = node{Params: Params{Guard: GuardBind, Port: 4789, VNI: 0xffffff}} },
	} {
		t.Run(name, func(t *testing.T) {
			p := params()
			change(&p)
			h := nshost.New(t)
			h.NFT("table inet canary { set s { type ipv4_addr; elements = { 192.0.2.1 }\n}\nchain c {\nip saddr @s counter\n}\n}")
			before := h.Run("nft list table inet canary")
			c := dial(t, h)
			install(t, c, Weft(p, peers()))
			for _, cmd := range []string{"nft list ruleset", "nft -j list ruleset", "nft list tables", "nft -a list table inet weft"} {
				out := h.Run(cmd)
				if strings.Contains(out, "rror") || !strings.Contains(out, "weft") {
					t.Errorf("%s:\n%s", cmd, out)
				}
			}
			if after := h.Run("nft list table inet canary"); after != before {
				t.Errorf("a foreign table changed:\n%s\nwas\n%s", after, before)
			}
			if err := c.Apply(t.Context(), Removal(Ruleset(p.Params), mustDump(t, c, Ruleset(p.Params)))); err != nil {
				t.Fatal(err)
			}
			if out := h.Run("nft list tables"); bytes.Contains([]byte(out), []byte("weft")) {
				t.Errorf("after removal: %s", out)
			}
		})
	}
}
