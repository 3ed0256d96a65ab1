// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Suffixes of what weft's agents publish beside flannel's annotations, so that
// a peer needs nothing of a Node but its metadata.
const (
	annSubnets  = "subnets"  // the Node's podCIDRs, a comma list
	annInstance = "instance" // Lease.Instance; absent when that is empty
)

// EncodeNode is EncodeAnnotations and, beside it, what only weft reads: l's
// subnets and instance. It is not for a prefix that flannel's agents write.
func EncodeNode(prefix string, l Lease) (map[string]string, error) {
	out, err := EncodeAnnotations(prefix, l)
	if err != nil {
		return nil, err
	}
	stem, err := annotations(prefix)
	if err != nil {
		return nil, err
	}
	var texts []string
	for _, p := range l.Paths {
		if err := checkSubnet(p.Subnet); err != nil {
			return nil, fmt.Errorf("annotate node %q: %w", clip(l.Node), err)
		}
		texts = append(texts, p.Subnet.String())
	}
	out[stem+annSubnets] = strings.Join(texts, ",")
	if l.Instance == "" {
		return out, nil
	}
	if err := checkName("instance", l.Instance); err != nil {
		return nil, fmt.Errorf("annotate node %q: %w", clip(l.Node), err)
	}
	out[stem+annInstance] = l.Instance
	return out, nil
}

// DecodeNode reads what EncodeNode writes, as DecodeAnnotations does.
func DecodeNode(prefix, node string, ann map[string]string) (Lease, error) {
	stem, err := annotations(prefix)
	if err != nil {
		return Lease{}, err
	}
	if ann[stem+annManaged] != "true" {
		return Lease{}, ErrUnmanaged
	}
	fail := func(name string, err error) (Lease, error) {
		return Lease{}, fmt.Errorf("annotations of node %q: %s: %w", clip(node), stem+name, err)
	}
	var subnets []netip.Prefix
	// A third one is seen by DecodeAnnotations without splitting megabytes.
	for _, text := range strings.SplitN(ann[stem+annSubnets], ",", 3) {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return fail(annSubnets, fmt.Errorf("%q: want one or two prefixes like 10.244.1.0/24,fd00:1::/64", clip(ann[stem+annSubnets])))
		}
		subnets = append(subnets, p)
	}
	l, err := DecodeAnnotations(prefix, node, subnets, ann)
	if err != nil {
		return Lease{}, err
	}
	if l.Instance = ann[stem+annInstance]; l.Instance != "" {
		if err := checkName("instance", l.Instance); err != nil {
			return fail(annInstance, err)
		}
	}
	return l, nil
}

// An AnnotationSet names the annotations of one network.
type AnnotationSet struct {
	Managed    string    // holds "true" on a Node that has a lease
	Sources    string    // what weft's agents write beside flannel's
	Published  []string  // all that agents may write, Managed included
	Overwrites [2]string // what an operator may write, in the order of Families
}

// AnnotationNames returns the names under prefix. It fails on a bad prefix.
func AnnotationNames(prefix string) (AnnotationSet, error) {
	stem, err := annotations(prefix)
	if err != nil {
		return AnnotationSet{}, err
	}
	set := AnnotationSet{Managed: stem + annManaged, Sources: sourcesName(stem), Overwrites: [2]string{stem + annOverwrite4, stem + annOverwrite6}}
	for _, name := range []string{annManaged, annBackendType, annData4, annData6, annIP4, annIP6, annSubnets, annInstance} {
		set.Published = append(set.Published, stem+name)
	}
	set.Published = append(set.Published, set.Sources)
	slices.Sort(set.Published)
	return set, nil
}
