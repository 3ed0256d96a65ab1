// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"slices"
	"strings"
)

// kind is nft's word for what s is.
func (s Set) kind() string {
	if s.Data != 0 {
		return "map"
	}
	return "set"
}

// keyText renders a key of s as nft does.
func (s Set) keyText(key string) string {
	words := make([]string, 0, len(s.Fields))
	for _, f := range s.Fields {
		_, _, n := f.info()
		if n > len(key) {
			return fmt.Sprintf("0x%x", key)
		}
		words = append(words, valueText(f, key[:n]))
		key = key[min((n+3)&^3, len(key)):]
	}
	return strings.Join(words, " . ")
}

// elementText renders an element of s as nft does.
func (s Set) elementText(e Element) string {
	out := "*"
	switch {
	case e.Key == "" && e.End != "":
		out = "end " + s.keyText(e.End) // nft has no words for half a range
	case e.Key == "":
	case s.Interval:
		last := strings.Repeat("\xff", len(e.Key))
		if e.End != "" {
			last = before(e.End)
		}
		if out = s.keyText(e.Key); last != e.Key {
			out += "-" + s.keyText(last)
		}
	default:
		out = s.keyText(e.Key)
	}
	if e.Data == "" {
		return out
	}
	return out + " : " + valueText(s.Data, e.Data)
}

// before returns the key before key, which counts in big endian.
func before(key string) string {
	b := []byte(key)
	for i := len(b) - 1; i >= 0; i-- {
		b[i]--
		if b[i] != 0xff {
			break
		}
	}
	return string(b)
}

// elementsText renders elements as the arguments of `nft add element`, a line
// for each set and at most perLine elements, sorted.
func elementsText(verb string, t Table, elements []Element) []string {
	const perLine = 64
	var out []string
	for _, s := range t.Sets {
		var some []Element
		for _, e := range elements {
			if e.Set == s.Name {
				some = append(some, e)
			}
		}
		slices.SortFunc(some, compareElements)
		for part := range slices.Chunk(some, perLine) {
			words := make([]string, len(part))
			for i, e := range part {
				words[i] = s.elementText(e)
			}
			out = append(out, fmt.Sprintf("nft %s element %s %s %s { %s }", verb, t.Family, t.Name, s.Name, strings.Join(words, ", ")))
		}
	}
	return out
}

// rewriteText renders what gives chains other rules.
func rewriteText(p Plan) []string {
	var out []string
	if p.Replace {
		return nil
	}
	for _, c := range p.Rewrite {
		name := fmt.Sprintf("%s %s %s", p.Table.Family, p.Table.Name, c.Name)
		out = append(out, "nft flush chain "+name)
		for _, r := range c.Rules {
			out = append(out, fmt.Sprintf("nft add rule %s %s", name, r))
		}
	}
	return out
}
