// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// maxDocument bounds, in bytes, every document that the package decodes.
// Real ones are below 1 KiB; a larger one is a mistake or an attack.
const maxDocument = 64 << 10

// maxNodeName is the longest name a DNS name can have (RFC 1035, 2.3.4), and
// therefore a Kubernetes Node or a host.
const maxNodeName = 253

// A special range can hold neither pods nor, unless underlay is set, the
// outer address of a node.
type special struct {
	prefix   netip.Prefix
	what     string
	underlay bool
}

// specials lists what is not globally usable unicast (IANA special-purpose
// address registries, RFC 6890). Private, shared and unique local space is
// fine, and so is 240.0.0.0/4, which Linux routes since 2.6.25.
func specials() [9]special {
	quad := func(bits int, b [4]byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4(b), bits) }
	octets := func(bits int, b [16]byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom16(b), bits) }
	return [9]special{
		{prefix: quad(8, [4]byte{0}), what: "this network, RFC 1122"},
		{prefix: quad(8, [4]byte{127}), what: "loopback"},
		{prefix: quad(16, [4]byte{169, 254}), what: "link-local", underlay: true},
		{prefix: quad(4, [4]byte{224}), what: "multicast"},
		{prefix: quad(32, [4]byte{255, 255, 255, 255}), what: "broadcast"},
		{prefix: octets(96, [16]byte{}), what: "unspecified and loopback, RFC 4291"},
		// An outer address must work without a zone, which a lease lacks.
		{prefix: octets(10, [16]byte{0xfe, 0x80}), what: "link-local"},
		{prefix: octets(8, [16]byte{0xff}), what: "multicast"},
		{prefix: octets(96, [16]byte{10: 0xff, 11: 0xff}), what: "IPv4-mapped"},
	}
}

// ordinary reports whether no special range has addresses with the first eight
// bits of a, which settles it for nearly all.
func ordinary(a netip.Addr) bool {
	if a.Is4() {
		b := a.As4()[0]
		return b != 0 && b != 127 && b != 169 && b < 224
	}
	b := a.As16()[0]
	return b != 0 && b < 0xfe
}

// checkPods reports why p cannot be a pod network or a pod subnet.
func checkPods(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("no prefix given")
	case p != p.Masked():
		return fmt.Errorf("%v has host bits set: want %v", p, p.Masked())
	case p.Bits() >= 8 && ordinary(p.Addr()):
		return nil
	}
	for _, s := range specials() {
		if s.prefix.Overlaps(p) {
			return fmt.Errorf("%v overlaps %v (%s): want unicast addresses", p, s.prefix, s.what)
		}
	}
	return nil
}

// checkUnderlay reports why a cannot be the outer address of a node.
func checkUnderlay(a netip.Addr) error {
	switch {
	case !a.IsValid():
		return errors.New("no underlay address given")
	case a.Zone() != "":
		return fmt.Errorf("underlay address %v has a zone: want a plain unicast address", a)
	case ordinary(a):
		return nil
	}
	for _, s := range specials() {
		if !s.underlay && s.prefix.Contains(a) {
			return fmt.Errorf("underlay address %v is in %v (%s): want a unicast address", a, s.prefix, s.what)
		}
	}
	return nil
}

// checkName reports why s cannot be the name of a node or of an instance.
// The letters are those of host names plus the underscore, so that a name
// read from a store is safe in a log line, a file name and a terminal.
func checkName(what, s string) error {
	if s == "" || len(s) > maxNodeName {
		return fmt.Errorf("%s %q has %d bytes: want 1 to %d", what, clip(s), len(s), maxNodeName)
	}
	ok := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' ||
			strings.ContainsRune("-._", r)
	}
	for _, r := range s {
		if !ok(r) {
			return fmt.Errorf("%s %q: want letters, digits, '-', '.' and '_'", what, clip(s))
		}
	}
	return nil
}

// clip shortens what came from outside for use in an error.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return s[:most] + "..."
}

// decodeJSON unmarshals data into v and turns the library's errors, which
// name Go types, into ones that name the place and what is expected there.
func decodeJSON(data []byte, v any) error {
	if len(data) > maxDocument {
		return fmt.Errorf("%d bytes of JSON: want at most %d", len(data), maxDocument)
	}
	err := json.Unmarshal(data, v)
	if err == nil {
		return nil
	}
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case len(strings.TrimSpace(string(data))) == 0:
		return errors.New("empty: want a JSON object")
	case errors.As(err, &syntax):
		line, column := position(data, syntax.Offset)
		return fmt.Errorf("line %d column %d: %w", line, column, err)
	case errors.As(err, &kind) && kind.Field == "":
		return fmt.Errorf("JSON %s: want a JSON object", kind.Value)
	case errors.As(err, &kind):
		return fmt.Errorf("%s holds a JSON %s: want %s", kind.Field, kind.Value, jsonKind(kind))
	}
	return err
}

// jsonKind names the JSON value that the Go type of a field stands for.
func jsonKind(e *json.UnmarshalTypeError) string {
	switch k := e.Type.Kind().String(); k {
	case "uint16":
		return "an integer from 0 to 65535"
	case "uint32":
		return "an integer from 0 to 4294967295"
	case "string", "array":
		return "a string"
	case "slice":
		return "a list of strings"
	case "struct", "ptr":
		return "an object"
	default:
		return "a " + k
	}
}

// position converts a byte offset to a line and a column, both from 1.
func position(data []byte, offset int64) (line, column int) {
	before := string(data[:max(0, min(offset-1, int64(len(data))))])
	return 1 + strings.Count(before, "\n"), len(before) - strings.LastIndexByte(before, '\n')
}
