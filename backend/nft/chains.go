// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// ChainInfo is a base chain of somebody else's table.
type ChainInfo struct {
	Family   Family
	Table    string
	Name     string
	Type     string // "filter", "nat" or "route"
	Hook     Hook
	Priority int32
	Policy   int32    // Drop or Accept
	Comments []string // of its rules, in order; rules without one are left out
}

// Attributes of what iptables-nft makes of a match (NFTA_MATCH_*,
// linux/netfilter/nf_tables_compat.h).
const (
	matchName = 1
	matchInfo = 3
)

// ForeignChains returns the base chains that are in force, of all families and
// all tables but weft's own (inet weft, and names that begin with "weft_"),
// in the kernel's order. Of their rules only the comments are read, so that
// no expression, however new, makes it fail. A table that goes meanwhile is
// left out. Tables of the older iptables are not nftables' and not listed.
func (c *Conn) ForeignChains(ctx context.Context) ([]ChainInfo, error) {
	fail := func(what string, err error) ([]ChainInfo, error) {
		return nil, fmt.Errorf("nftables: list %s: %w", what, explain(err))
	}
	type table struct {
		family Family
		name   string
	}
	live := map[table]bool{}
	everything := body(unix.NFPROTO_UNSPEC, 0)
	err := c.whole(ctx, unix.NFT_MSG_GETTABLE, everything, func() { clear(live) }, func(msg []byte) error {
		f, err := split(msg)
		if err != nil {
			return err
		}
		flags, _ := be32(f[unix.NFTA_TABLE_FLAGS]) // not there: none set
		live[table{Family(msg[0]), text(f[unix.NFTA_TABLE_NAME])}] = flags&unix.NFT_TABLE_F_DORMANT == 0
		return nil
	})
	if err != nil {
		return fail("tables", err)
	}
	var out []ChainInfo
	err = c.whole(ctx, unix.NFT_MSG_GETCHAIN, everything, func() { out = nil }, func(msg []byte) error {
		info, base, err := readChainInfo(msg)
		if err == nil && base && !ours(info.Family, info.Table) && live[table{info.Family, info.Table}] {
			out = append(out, info)
		}
		return err
	})
	if err != nil {
		return fail("chains", err)
	}
	for i := range out {
		err := c.readComments(ctx, &out[i])
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fail(fmt.Sprintf("rules of chain %s %s %s", out[i].Family, out[i].Table, out[i].Name), err)
		}
	}
	return out, nil
}

// ours reports whether a table is one that weft makes.
func ours(f Family, table string) bool {
	return f == Inet && table == TableName || strings.HasPrefix(table, TableName+"_")
}

// readChainInfo decodes one chain and reports whether it is a base chain.
func readChainInfo(msg []byte) (info ChainInfo, base bool, err error) {
	f, err := split(msg)
	if err != nil {
		return ChainInfo{}, false, err
	}
	hook, base := f[unix.NFTA_CHAIN_HOOK]
	ch, err := decodeChain(f)
	info = ChainInfo{
		Family: Family(msg[0]), Table: text(f[unix.NFTA_CHAIN_TABLE]), Name: text(f[unix.NFTA_CHAIN_NAME]),
		Type: ch.Kind, Hook: hookOf(Family(msg[0]), ch.Hook), Priority: ch.Priority, Policy: ch.Policy,
	}
	return info, base && len(hook) > 0, err
}

// hookOf translates the hook numbers of the families that count in their own
// way (linux/netfilter_arp.h, enum nf_dev_hooks in linux/netfilter.h).
func hookOf(f Family, h Hook) Hook {
	var own []Hook
	switch f {
	case ARP:
		own = []Hook{Input, Output, Forward}
	case NetDev:
		own = []Hook{Ingress, Egress}
	default:
		return h
	}
	if h == 0 || int(h) > len(own) {
		return 0
	}
	return own[h-1]
}

// readComments fills in the comments of info's rules.
func (c *Conn) readComments(ctx context.Context, info *ChainInfo) error {
	req := body(info.Family, 0)
	req.text(unix.NFTA_RULE_TABLE, info.Table)
	req.text(unix.NFTA_RULE_CHAIN, info.Name)
	return c.whole(ctx, unix.NFT_MSG_GETRULE, req, func() { info.Comments = nil }, func(msg []byte) error {
		f, ok, err := fields(Table{Family: info.Family, Name: info.Table}, msg)
		if err != nil || !ok || text(f[unix.NFTA_RULE_CHAIN]) != info.Name {
			return err
		}
		if comment, _ := readUserdata(f[unix.NFTA_RULE_USERDATA]); comment != "" {
			info.Comments = append(info.Comments, comment)
		} else if comment := matchComment(f[unix.NFTA_RULE_EXPRESSIONS]); comment != "" {
			info.Comments = append(info.Comments, comment)
		}
		return nil
	})
}

// matchComment finds the comment of a rule that iptables made: the data of
// its match named "comment". What does not parse holds none.
func matchComment(list []byte) (comment string) {
	_ = eachAttr(list, func(_ uint16, expr []byte) error {
		return eachAttr(expr, func(typ uint16, v []byte) error {
			if typ != unix.NFTA_EXPR_DATA {
				return nil
			}
			var name, info []byte
			_ = eachAttr(v, func(typ uint16, v []byte) error {
				switch typ {
				case matchName:
					name = v
				case matchInfo:
					info = v
				}
				return nil
			})
			if text(name) == "comment" {
				comment = text(info)
			}
			return nil
		})
	})
	return comment
}
