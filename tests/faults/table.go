// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"weft.dev/weft/tests/netlab"
)

// tableDrift is damage to table inet weft (T2, F7).
func tableDrift() []fault {
	const never = "never restored: the nftables manager ignores its resync period"
	return []fault{
		{ID: "T2", Name: "nft flush ruleset", Flannel: never + " (#1834)", Deaf: true, Run: onTable("flush ruleset")},
		{ID: "F7", Name: "table inet weft deleted", Flannel: never, Deaf: true, Run: onTable("delete table inet weft")},
		{ID: "F7", Name: "chains of table inet weft flushed", Flannel: never, Deaf: true, Run: onTable("flush table inet weft")},
		{ID: "F7", Name: "a peer's element deleted", Flannel: "no such guard", Loses: true, Deaf: true, Run: elementDeleted},
		{ID: "F7", Name: "a stranger's element added", Flannel: "no such guard", Deaf: true, Run: onTable("add element inet weft peers4 { 192.168.77.240 }")},
		{ID: "F7", Name: "a foreign rule in a chain of ours", Flannel: never, Loses: true, Deaf: true, Run: foreignRule},
	}
}

// onTable runs an nft(8) command on a node.
func onTable(command string) func(context.Context, *scene) error {
	return func(ctx context.Context, s *scene) error {
		n := s.node()
		s.notef("%s", n)
		if !s.before[n.Name()].has("nft table") && !s.before[n.Name()].has(`nft chain`) {
			return fmt.Errorf("%s has no table inet weft", n)
		}
		if err := s.inject(func() error { return s.nft(ctx, n.Place, command) }); err != nil {
			return err
		}
		return s.heals(ctx)
	}
}

// elementDeleted takes what lets a peer's pods in out of a set: the guard
// refuses what they send until it is back.
func elementDeleted(ctx context.Context, s *scene) error {
	n := s.node()
	o := pick(s, s.others(n))
	subnets, err := o.Subnets()
	if err != nil {
		return err
	}
	i := s.rng.IntN(2) // the family; IPv4 comes first in both
	set := []string{"bind4_inner4_24", "bind6_inner6_64"}[i]
	// The inner source is raw bytes to nft(8): it takes a number for it.
	command := fmt.Sprintf("delete element inet weft %s { %s . 0x%x }", set, o.Underlay()[i], subnets[i].Addr().AsSlice())
	s.notef("%s: %s", n, command)
	if err := s.inject(func() error { return s.nft(ctx, n.Place, command) }); err != nil {
		return err
	}
	return s.heals(ctx)
}

// foreignRule puts a rule that drops everything in front of a chain.
func foreignRule(ctx context.Context, s *scene) error {
	n := s.node()
	s.notef("%s", n)
	if err := s.inject(func() error {
		return s.nft(ctx, n.Place, "insert rule inet weft early_input udp dport 8472 drop")
	}); err != nil {
		return err
	}
	return s.heals(ctx)
}

// status is what the lab reads of `weft status -o json`.
type status struct {
	Ready    bool
	Reason   string
	InSync   bool
	Problems []struct{ Kind, Object, Detail string }
	Hold     json.RawMessage
}

// ask runs `weft status` on a node.
func (s *scene) ask(ctx context.Context, n *netlab.Node) (status, error) {
	var st status
	// Its exit status is 1 when the node is not ready; it prints all the same.
	out, err := n.Run(ctx, filepath.Join(s.Config().BinDir, "weft"), "status", "-o", "json")
	if out == "" {
		return st, err
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return st, fmt.Errorf("weft status on %s: %w: %s", n, err, out)
	}
	return st, nil
}

// problem returns nil if the node's agent has told of a problem, or of a
// reason not to be ready, that mentions all words.
func (s *scene) problem(ctx context.Context, n *netlab.Node, words ...string) error {
	st, err := s.ask(ctx, n)
	if err != nil {
		return err
	}
	said := []string{st.Reason}
	for _, p := range st.Problems {
		said = append(said, p.Kind+" "+p.Object+" "+p.Detail)
	}
	for _, text := range said {
		all := true
		for _, w := range words {
			all = all && strings.Contains(text, w)
		}
		if all {
			return nil
		}
	}
	return fmt.Errorf("%s tells of nothing with %q: %q", n, words, said)
}

func writeFile(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
