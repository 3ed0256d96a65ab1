// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"
)

// String renders t as `nft list table` would, in the order of declaration.
// Parts that nft has no words for read as it lists them.
func (t Table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s {\n", t.Family, t.Name)
	if t.Comment != "" {
		fmt.Fprintf(&b, "\tcomment %q\n", t.Comment)
	}
	for _, c := range t.Counters {
		fmt.Fprintf(&b, "\tcounter %s {}\n", c)
	}
	for _, s := range t.Sets {
		fmt.Fprintf(&b, "\t%s %s { %s; }\n", s.kind(), s.Name, s.typeText())
	}
	for _, c := range t.Chains {
		fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
		if c.Hook != 0 {
			fmt.Fprintf(&b, "\t\t%s\n", c.head())
		}
		for _, r := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", r)
		}
		b.WriteString("\t}\n")
	}
	b.WriteString("}\n")
	return b.String()
}

func (c Chain) head() string {
	return fmt.Sprintf("type %s hook %s priority %d; policy accept;", c.kind(), c.Hook, c.Priority)
}

// kind is nft's and the kernel's word for the chain's type.
func (c Chain) kind() string {
	if c.NAT {
		return "nat"
	}
	return "filter"
}

// String renders r in nft's language.
func (r Rule) String() string {
	words := make([]string, len(r.Exprs))
	for i, e := range r.Exprs {
		words[i] = e.String()
	}
	s := strings.Join(words, " ")
	if r.Comment != "" {
		s += fmt.Sprintf(" comment %q", r.Comment)
	}
	return s
}

// String renders the loaded field; a mask is not part of it.
func (l Load) String() string {
	if l.Name != "" {
		return l.Name
	}
	base := map[Source]string{LinkHeader: "ll", NetworkHeader: "nh", TransportHeader: "th"}[l.From]
	return fmt.Sprintf("@%s,%d,%d", base, l.Offset*8, l.Len*8)
}

// String renders the comparison; a prefix reads as one.
func (m Match) String() string {
	op := " "
	if m.Not {
		op = " != "
	}
	if m.Load.From == ExtensionExists && !m.Not {
		return m.Load.String() + " exists"
	}
	if m.Load.Mask == "" {
		return m.Load.String() + op + valueText(m.Load.Type, m.Value)
	}
	if m.Load.Type == IPv4Addr || m.Load.Type == IPv6Addr {
		if bits, ok := maskBits(m.Load.Mask); ok {
			return fmt.Sprintf("%s%s%s/%d", m.Load, op, valueText(m.Load.Type, m.Value), bits)
		}
	}
	if !m.Not {
		op = " == "
	}
	return m.Load.String() + " & " + valueText(m.Load.Type, m.Load.Mask) + op + valueText(m.Load.Type, m.Value)
}

// String renders the lookup.
func (i In) String() string {
	words := make([]string, len(i.Fields))
	for n, f := range i.Fields {
		words[n] = f.String()
		if f.Mask != "" {
			words[n] += " & " + valueText(f.Type, f.Mask)
		}
	}
	op := " @"
	if i.Not {
		op = " != @"
	}
	return strings.Join(words, " . ") + op + i.Set
}

// String renders the statement.
func (c Count) String() string { return fmt.Sprintf("counter name %q", c.Counter) }

// String renders the verdict.
func (v Verdict) String() string {
	switch v.Code {
	case Drop:
		return "drop"
	case Accept:
		return "accept"
	case Jump:
		return "jump " + v.Chain
	case Goto:
		return "goto " + v.Chain
	case Return:
		return "return"
	}
	return fmt.Sprintf("verdict %d", v.Code)
}

// String renders the statement.
func (Notrack) String() string { return "notrack" }

// String renders the statement.
func (m Masquerade) String() string {
	if m.Ports == [2]uint16{} {
		return "masquerade fully-random"
	}
	return fmt.Sprintf("masquerade to :%d-%d fully-random", m.Ports[0], m.Ports[1])
}

// maskBits returns the prefix length of a mask, if it is one.
func maskBits(mask string) (int, bool) {
	n := 0
	for n < len(mask)*8 && mask[n/8]&(0x80>>(n%8)) != 0 {
		n++
	}
	return n, mask == string(prefixMask(n, len(mask)))
}

func valueText(t Type, v string) string {
	b := []byte(v)
	switch {
	case t == IPv4Addr && len(b) == 4, t == IPv6Addr && len(b) == 16:
		a, _ := netip.AddrFromSlice(b)
		return a.String()
	case t == Port && len(b) == 2:
		return fmt.Sprint(binary.BigEndian.Uint16(b))
	case t == PortWords && len(b) == 4:
		return fmt.Sprint(binary.BigEndian.Uint16(b))
	case t == Mark && len(b) == 4:
		return fmt.Sprintf("0x%08x", binary.NativeEndian.Uint32(b))
	case t == IfName:
		return fmt.Sprintf("%q", unix.ByteSliceToString(b))
	case t == NFProto && len(b) == 1:
		return map[byte]string{unix.NFPROTO_IPV4: "ipv4", unix.NFPROTO_IPV6: "ipv6"}[b[0]]
	case t == Protocol && len(b) == 1:
		if w := map[byte]string{unix.IPPROTO_UDP: "udp", unix.IPPROTO_TCP: "tcp", unix.IPPROTO_ICMPV6: "ipv6-icmp"}[b[0]]; w != "" {
			return w
		}
		return fmt.Sprint(b[0])
	case t == EtherAddr && len(b) == 6:
		return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3], b[4], b[5])
	}
	if len(b) == 1 {
		return fmt.Sprint(b[0])
	}
	return "0x" + fmt.Sprintf("%x", b)
}
