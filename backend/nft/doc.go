// SPDX-License-Identifier: Apache-2.0

// Package nft keeps nftables tables of ours in the kernel through netlink,
// without the nft program.
//
// A Table is plain data: chains of rules made of expressions, sets and maps of
// keys or of ranges of keys, counters.
// Desired adds the elements that its sets hold. Conn.Dump reads what the
// kernel has under the table's name, Diff compares (pure), and Conn.Apply
// sends the difference as one transaction, so that no packet ever meets half
// of a change. Only elements change in the ordinary course; a table whose
// chains, rules or sets are not as desired is replaced whole. Plan.Rewrite gives
// chains other rules in the transaction that changes elements.
//
// Ruleset is table inet weft: the VXLAN ingress guard, scoped notrack, the
// refusal of router advertisements, the drop of VXLAN that pods send, and
// masquerading. The table carries the Params it was made from, so that
// Content.Params and Structure tell, with no memory of it, what it is and
// whether somebody altered it. NodeElement and SourceElement make what its
// sets hold, Members reads it.
//
// SpoofTable is table bridge weft_guard, which drops what pods say in others'
// names before the bridge sees it; SpoofElements makes what its sets hold of a
// pod.
//
// ClearLabels takes labels, which rules give to flows, away again; that no rule
// can do.
//
// The wire format is linux/netfilter/nf_tables.h as of Linux 5.10; nothing
// newer is sent.
package nft
