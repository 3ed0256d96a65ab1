// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"encoding/json"
	"strconv"
)

// Nearly all leases in a store are written as encodeAttrs, or flannel, writes
// them: the same fields in the same order, without spaces or escapes. An agent
// that starts reads thousands; what is plain in this way is read here, in a
// tenth of the time that encoding/json takes. Whatever is not is left to
// encoding/json, which alone says what is wrong with a value.

// A plainReader reads JSON of a known layout from rest.
type plainReader struct {
	rest []byte
	odd  bool // not as expected: nothing that was read counts
}

// skip reads text if it is next.
func (r *plainReader) skip(text string) bool {
	if len(r.rest) < len(text) || string(r.rest[:len(text)]) != text {
		return false
	}
	r.rest = r.rest[len(text):]
	return true
}

// expect is skip for text that must be there.
func (r *plainReader) expect(text string) { r.odd = !r.skip(text) || r.odd }

// text reads a string of printable ASCII without escapes.
func (r *plainReader) text() string {
	r.expect(`"`)
	for i := range len(r.rest) {
		switch c := r.rest[i]; {
		case c == '"':
			s := string(r.rest[:i])
			r.rest = r.rest[i+1:]
			return s
		case c == '\\' || c < ' ' || c > '~':
			r.odd = true
			return ""
		}
	}
	r.odd = true
	return ""
}

// number reads an unsigned number of at most 32 bits.
func (r *plainReader) number() uint32 {
	n := 0
	for n < len(r.rest) && r.rest[n] >= '0' && r.rest[n] <= '9' {
		n++
	}
	v, err := strconv.ParseUint(string(r.rest[:n]), 10, 32)
	r.odd = r.odd || err != nil || n > 1 && r.rest[0] == '0'
	r.rest = r.rest[n:]
	return uint32(v)
}

// vxlan reads what the vxlan backend publishes.
func (r *plainReader) vxlan() (d vxlanJSON) {
	r.expect(`{`)
	if r.skip(`"VNI":`) {
		d.VNI = r.number()
		r.expect(`,`)
	}
	r.expect(`"VtepMAC":`)
	var ok bool
	d.VtepMAC, ok = plainMAC(r.text())
	r.odd = r.odd || !ok
	r.expect(`}`)
	return d
}

// data reads the same and returns its text, which shares the value's memory.
func (r *plainReader) data() json.RawMessage {
	from := r.rest
	r.vxlan()
	return json.RawMessage(from[:len(from)-len(r.rest)])
}

// weft reads our own part.
func (r *plainReader) weft() *weftJSON {
	var w weftJSON
	r.expect(`{"Node":`)
	w.Node = r.text()
	r.expect(`,"Instance":`)
	w.Instance = r.text()
	for next := `,"Sources":[`; r.skip(next) && !r.odd; next = `,` {
		w.Sources = append(w.Sources, r.text())
	}
	if w.Sources != nil {
		r.expect(`]`)
	}
	r.expect(`}`)
	return &w
}

// plainLease reads a lease's value, and reports false for one that
// encoding/json has to read.
func plainLease(value []byte) (leaseJSON, bool) {
	if len(value) > maxDocument {
		return leaseJSON{}, false
	}
	var l leaseJSON
	r := plainReader{rest: value}
	r.expect(`{"PublicIP":`)
	l.PublicIP = r.text()
	r.expect(`,"PublicIPv6":`)
	if !r.skip(`null`) {
		a := r.text()
		l.PublicIPv6 = &a
	}
	if r.skip(`,"BackendType":`) {
		l.BackendType = BackendType(r.text())
	}
	if r.skip(`,"BackendData":`) {
		l.BackendData = r.data()
	}
	if r.skip(`,"BackendV6Data":`) {
		l.BackendV6Data = r.data()
	}
	if r.skip(`,"Weft":`) {
		l.Weft = r.weft()
	}
	r.expect(`}`)
	return l, !r.odd && len(r.rest) == 0
}

// plainVXLAN is plainLease for what the vxlan backend publishes.
func plainVXLAN(data json.RawMessage) (vxlanJSON, bool) {
	r := plainReader{rest: data}
	d := r.vxlan()
	return d, !r.odd && len(r.rest) == 0
}

// plainMAC reads six octets of two digits each, between colons.
func plainMAC(s string) (m MAC, ok bool) {
	if len(s) != 3*len(m)-1 {
		return MAC{}, false
	}
	for i := range m {
		high, low := hexDigit(s[3*i]), hexDigit(s[3*i+1])
		if high > 15 || low > 15 || i > 0 && s[3*i-1] != ':' {
			return MAC{}, false
		}
		m[i] = high<<4 | low
	}
	return m, true
}

// hexDigit returns what c stands for, more than 15 for nothing.
func hexDigit(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}
