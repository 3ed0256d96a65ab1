// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"weft.dev/weft/internal/nshost"
)

func (c ChainInfo) text() string {
	return fmt.Sprintf("%s %s %s: type %s hook %s priority %d policy %s %q", c.Family, c.Table, c.Name, c.Type, c.Hook, c.Priority, Verdict{Code: c.Policy}, c.Comments)
}

// lines breaks a script where nft wants it broken.
func lines(script string) string {
	return strings.NewReplacer("{ ", "{\n", "; }", "\n}", " }", "\n}").Replace(script)
}

// The chains of others, with things in them that weft knows nothing of.
func TestForeignChains(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	if all, err := c.ForeignChains(t.Context()); err != nil || len(all) != 0 {
		t.Fatalf("in an empty namespace: %v, %v", all, err)
	}
	install(t, c, Weft(params(), peers()))
	h.NFT(lines(`table ip filter {
		map verdicts { type ipv4_addr : verdict; elements = { 192.0.2.1 : accept } }
		chain FORWARD {
			type filter hook forward priority 0; policy drop;
			ct state established,related counter accept
			ip saddr vmap @verdicts
			numgen random mod 2 vmap { 0 : accept, 1 : continue } comment "dice"
			meta mark set jhash ip saddr mod 7 seed 1
			jump USER
			limit rate 5/second log prefix "x" comment "weft: let pods through"
		}
		chain USER { accept comment "in no base chain"; }
		chain INPUT { type filter hook input priority 0; policy accept; }
	}
	table ip6 filter { chain FORWARD { type filter hook forward priority filter; policy drop; } }
	table inet fw4 { chain forward { type filter hook forward priority -5; policy drop; tcp flags syn tcp option maxseg size set rt mtu; } }
	table inet asleep { flags dormant; chain forward { type filter hook forward priority 0; policy drop; } }
	table inet weft_policy { chain forward { type filter hook forward priority 0; policy drop; } }
	table bridge b { chain c { type filter hook forward priority 0; policy drop; } }
	table arp a { chain c { type filter hook input priority 0; } }
	table netdev n { chain c { type filter hook ingress device lo priority 3; } }
	table ip nat { chain c { type nat hook postrouting priority srcnat; } }`))
	got, err := c.ForeignChains(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, i := range got {
		have[i.text()] = true
	}
	want := []string{
		`ip filter FORWARD: type filter hook forward priority 0 policy drop ["dice" "weft: let pods through"]`,
		`ip filter INPUT: type filter hook input priority 0 policy accept []`,
		`ip6 filter FORWARD: type filter hook forward priority 0 policy drop []`,
		`inet fw4 forward: type filter hook forward priority -5 policy drop []`,
		`bridge b c: type filter hook forward priority 0 policy drop []`,
		`arp a c: type filter hook input priority 0 policy accept []`,
		`netdev n c: type filter hook ingress priority 3 policy accept []`,
		`ip nat c: type nat hook postrouting priority 100 policy accept []`,
	}
	for _, w := range want {
		if !have[w] {
			t.Errorf("missing: %s", w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d chains, want %d: %v", len(got), len(want), have)
	}
}

// Tables that come and go meanwhile cost at most what they hold themselves.
func TestForeignChainsUnderChange(t *testing.T) {
	h := nshost.New(t)
	c, vandal := dial(t, h), dial(t, h)
	h.NFT(lines("table ip stays { chain forward { type filter hook forward priority 0; policy drop; ip saddr 192.0.2.1 drop comment \"mine\"; } }"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		var err error
		for i := 0; err == nil && ctx.Err() == nil; i++ {
			table := Ruleset(params().Params)
			table.Name = fmt.Sprint("t", i%3)
			plan := Diff(Desired{Table: table}, Content{})
			if i%2 == 0 {
				plan = Removal(table, Content{Present: true})
			}
			err = vandal.Apply(context.WithoutCancel(ctx), plan)
		}
		done <- err
	}()
	for range 200 {
		all, err := c.ForeignChains(t.Context())
		if errors.Is(err, unix.EINTR) {
			continue // more changes than attempts
		} else if err != nil {
			t.Fatal(err)
		}
		seen := false
		for _, i := range all {
			seen = seen || i.text() == `ip stays forward: type filter hook forward priority 0 policy drop ["mine"]`
		}
		if !seen {
			t.Fatalf("the chain that stays is not in %v", all)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// iptables stores a comment as the data of a match: struct xt_comment_info
// (linux/netfilter/xt_comment.h), 256 bytes.
func TestCommentsOfIptables(t *testing.T) {
	var e exprEncoder
	e.add("counter", func(*attrs) {})
	e.add("match", func(a *attrs) {
		a.text(matchName, "comment")
		a.bytes(matchInfo, append([]byte("weft pods"), make([]byte, 256-9)...))
	})
	if got := matchComment(e.list); got != "weft pods" {
		t.Errorf("got %q", got)
	}
	if got := matchComment(e.list[:len(e.list)-9]); got != "" {
		t.Errorf("from a list cut short: %q", got)
	}
}

// A kernel without nf_tables answers as one does that lacks any other part of
// nfnetlink.
func TestKernelWithoutNftables(t *testing.T) {
	h := nshost.New(t)
	c := dial(t, h)
	const nobody = 15 // a subsystem number beyond all that there are
	err := explain(c.ask(t.Context(), nobody<<8^unix.NFNL_SUBSYS_NFTABLES<<8, unix.NLM_F_ACK, body(unix.NFPROTO_UNSPEC, 0), nil))
	if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "CONFIG_NF_TABLES") || !strings.Contains(err.Error(), "modprobe nf_tables") {
		t.Errorf("got %v", err)
	}
	if _, err := c.Generation(t.Context()); err != nil {
		t.Errorf("this kernel: %v", err)
	}
}
