// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"fmt"
	"hash/maphash"
	"net/netip"

	"weft.dev/weft/subnet"
)

// A dialect is a way to publish leases on Nodes.
type dialect struct {
	prefix string
	names  subnet.AnnotationSet
	whole  bool // the subnets stand in the annotations; else they are read from the Node
}

func newDialect(prefix string, whole bool) (dialect, error) {
	names, err := subnet.AnnotationNames(prefix)
	return dialect{prefix: prefix, names: names, whole: whole}, err
}

// encode returns the annotations that publish l.
func (d dialect) encode(l subnet.Lease) (map[string]string, error) {
	if d.whole {
		return subnet.EncodeNode(d.prefix, l)
	}
	return subnet.EncodeAnnotations(d.prefix, l)
}

// decode is the inverse of encode; podCIDRs may be missing when d is whole.
func (d dialect) decode(node string, podCIDRs []netip.Prefix, ann map[string]string) (subnet.Lease, error) {
	if d.whole {
		return subnet.DecodeNode(d.prefix, node, ann)
	}
	return subnet.DecodeAnnotations(d.prefix, node, podCIDRs, ann)
}

// dialects are those that are understood. The first is also the one in which
// we publish, and wins where a Node has several.
type dialects []dialect

func newDialects(o Options) (dialects, error) {
	own, err := newDialect(o.Prefix, !o.Flannel)
	if err != nil || o.Flannel {
		return dialects{own}, err
	}
	flannel, err := newDialect(subnet.FlannelAnnotationPrefix, false)
	return dialects{own, flannel}, err
}

// of returns the dialect in which a Node with these annotations has a lease.
func (ds dialects) of(ann map[string]string) (dialect, bool) {
	for _, d := range ds {
		if ann[d.names.Managed] == "true" {
			return d, true
		}
	}
	return dialect{}, false
}

// each calls f with each name that can matter.
func (ds dialects) each(f func(name string)) {
	for _, d := range ds {
		for _, name := range d.names.Published {
			f(name)
		}
		for _, name := range d.names.Overwrites {
			f(name)
		}
	}
}

// digest stands for what of ann can matter. What is the same after a heartbeat
// is found out without decoding it.
func (ds dialects) digest(seed maphash.Seed, ann map[string]string) uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	ds.each(func(name string) {
		v, ok := ann[name]
		maphash.WriteComparable(&h, annotation{v, ok})
	})
	return h.Sum64()
}

// annotation is a value that may be missing.
type annotation struct {
	value string
	there bool
}

// pick returns what of ann can matter.
func (ds dialects) pick(ann map[string]string) map[string]string {
	out := map[string]string{}
	ds.each(func(name string) {
		if v, ok := ann[name]; ok {
			out[name] = v
		}
	})
	return out
}

// overwritten returns l with the addresses that the operator has set on our
// Node, in any of the dialects; the first dialect that has one for a family
// wins.
func (ds dialects) overwritten(l subnet.Lease, ann map[string]string) (subnet.Lease, error) {
	first := map[string]string{}
	for i, name := range ds[0].names.Overwrites {
		for _, d := range ds {
			if v := ann[d.names.Overwrites[i]]; v != "" && first[name] == "" {
				first[name] = v
			}
		}
	}
	return subnet.ApplyOverwrite(ds[0].prefix, l, first)
}

// parseCIDRs reads podCIDRs as the API holds them.
func parseCIDRs(texts []string) ([]netip.Prefix, error) {
	if len(texts) == 0 {
		return nil, errors.New("the Node has no podCIDR yet")
	}
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("podCIDR %q: want a prefix", clip(text))
		}
		out = append(out, p)
	}
	return out, nil
}
