// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"cmp"
	"slices"
)

// rawElement is an element as it is read. Of one that ends a range (isEnd) the
// kernel has an element of its own; end is filled in by ranges.
type rawElement struct {
	key, end, data []byte
	isEnd          bool
}

// keyList keeps elements one behind the other.
type keyList struct {
	bytes []byte
	items []item
}

// item says where in the bytes an element's key and data end.
type item struct {
	key, data int
	isEnd     bool
}

func (l *keyList) reset() { l.bytes, l.items = l.bytes[:0], l.items[:0] }

func (l *keyList) len() int { return len(l.items) }

func (l *keyList) add(key, data []byte, isEnd bool) {
	l.bytes = append(l.bytes, key...)
	at := len(l.bytes)
	l.bytes = append(l.bytes, data...)
	l.items = append(l.items, item{at, len(l.bytes), isEnd})
}

// each calls f with every key, which is valid until the next reset.
func (l *keyList) each(f func(key []byte)) { l.all(func(e rawElement) { f(e.key) }) }

// all calls f with every element, which is valid until the next reset.
func (l *keyList) all(f func(rawElement)) {
	at := 0
	for _, i := range l.items {
		f(rawElement{key: l.bytes[at:i.key], data: l.bytes[i.key:i.data], isEnd: i.isEnd})
		at = i.data
	}
}

// ranges joins what the kernel has as two elements, where a range begins and
// where it ends. A range that nothing ends before the next begins has no end;
// an end that belongs to none has no key.
func (l *keyList) ranges() []rawElement {
	raw := make([]rawElement, 0, len(l.items))
	l.all(func(e rawElement) { raw = append(raw, e) })
	slices.SortStableFunc(raw, func(a, b rawElement) int {
		return cmp.Or(bytes.Compare(a.key, b.key), cmp.Compare(endsFirst(a), endsFirst(b)))
	})
	var out []rawElement
	open := false
	for _, e := range raw {
		switch {
		case !e.isEnd:
			out, open = append(out, e), len(e.key) > 0
		case open:
			out[len(out)-1].end, open = e.key, false
		default:
			out = append(out, rawElement{end: e.key})
		}
	}
	return out
}

// endsFirst orders what is at one key: a range ends where the next begins.
func endsFirst(e rawElement) int {
	if e.isEnd {
		return 0
	}
	return 1
}
