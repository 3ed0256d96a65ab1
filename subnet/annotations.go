// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// FlannelAnnotationPrefix is flannel's default --kube-annotation-prefix (main.go,
// v0.28).
const FlannelAnnotationPrefix = "flannel.alpha.coreos.com"

// Suffixes of the Node annotations, flannel's (pkg/subnet/kube/annotations.go,
// v0.28) but for the last. The overwrite ones are the operator's, the others the agent's.
const (
	annManaged     = "kube-subnet-manager"
	annBackendType = "backend-type"
	annData4       = "backend-data"
	annData6       = "backend-v6-data"
	annIP4         = "public-ip"
	annIP6         = "public-ipv6"
	annOverwrite4  = "public-ip-overwrite"
	annOverwrite6  = "public-ipv6-overwrite"
	annSources     = "sources" // weft's own: a comma list
)

// ErrUnmanaged says that a Node carries no lease: nobody has annotated it
// with <prefix>kube-subnet-manager=true.
var ErrUnmanaged = errors.New("node is not managed by this network")

// annotationStem is flannel's rule for prefixes, anchored at both ends.
var annotationStem = regexp.MustCompile(`^(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?$`)

// annotations returns the text that precedes each suffix: prefix with a
// slash when it has none, and with a dash when it ends in neither.
func annotations(prefix string) (string, error) {
	stem := prefix
	if !strings.Contains(stem, "/") {
		stem += "/"
	}
	if !strings.HasSuffix(stem, "/") && !strings.HasSuffix(stem, "-") {
		stem += "-"
	}
	if !annotationStem.MatchString(stem) {
		return "", fmt.Errorf("annotation prefix %q: want a lower-case domain with a dot, "+
			"then at most one slash and a name, like weft.dev or weft.dev/blue", clip(prefix))
	}
	return stem, nil
}

// EncodeAnnotations returns the annotations that publish l on its Node, in
// flannel's exact text. prefix is like "weft.dev" or "weft.dev/blue". The
// subnets are not among them: they are the Node's podCIDRs. It fails on what
// EncodeLease refuses of endpoints, and on a bad prefix.
//
// As with flannel, a backend other than vxlan always publishes backend-data
// and public-ip ("null" and "0.0.0.0" when it has none), and the IPv6 pair
// appears only when there is an IPv6 underlay. Sources appear when there are
// any; who publishes must remove what an earlier lease left.
func EncodeAnnotations(prefix string, l Lease) (map[string]string, error) {
	stem, err := annotations(prefix)
	if err != nil {
		return nil, err
	}
	if len(l.Paths) == 0 {
		return nil, fmt.Errorf("annotate node %q: the lease has no path", clip(l.Node))
	}
	eps, err := endpoints(l)
	if err != nil {
		return nil, fmt.Errorf("annotate node %q: %w", clip(l.Node), err)
	}
	out := map[string]string{stem + annManaged: "true", stem + annBackendType: string(l.Backend)}
	put := func(dataName, addrName string, data json.RawMessage, addr string) {
		if data == nil {
			data = json.RawMessage("null")
		}
		out[stem+dataName], out[stem+addrName] = string(data), addr
	}
	if ep, ok := eps[IPv4]; ok {
		put(annData4, annIP4, ep.data, ep.addr.String())
	} else if l.Backend != BackendVXLAN {
		put(annData4, annIP4, nil, noAddr)
	}
	if ep, ok := eps[IPv6]; ok {
		put(annData6, annIP6, ep.data, ep.addr.String())
	}
	sources, err := sourceTexts(l.Sources)
	if err != nil {
		return nil, fmt.Errorf("annotate node %q: %w", clip(l.Node), err)
	}
	if len(sources) > 0 {
		out[sourcesName(stem)] = strings.Join(sources, ",")
	}
	return out, nil
}

// sourcesName is the name of the annotation of ours that goes with flannel's:
// under the same prefix, but never under flannel's own.
func sourcesName(stem string) string {
	if stem == FlannelAnnotationPrefix+"/" {
		stem = AnnotationPrefix
	}
	return stem + annSources
}

// DecodeAnnotations reads the lease of the Node called node from its
// podCIDRs (one or two, of different families, in any order) and its
// annotations, which may be nil. It checks as DecodeLease does; the result's
// Instance is empty. An overwrite annotation of the operator replaces the
// published underlay address of its family at once, without waiting for the
// node to publish it; the published one becomes a source. The error is ErrUnmanaged for a Node without a lease
// and otherwise names the node.
func DecodeAnnotations(prefix, node string, podCIDRs []netip.Prefix, ann map[string]string) (Lease, error) {
	stem, err := annotations(prefix)
	if err != nil {
		return Lease{}, err
	}
	if ann[stem+annManaged] != "true" {
		return Lease{}, ErrUnmanaged
	}
	l, err := decodeNode(stem, node, podCIDRs, ann)
	if err != nil {
		return Lease{}, fmt.Errorf("annotations of node %q: %w", clip(node), err)
	}
	return l, nil
}

func decodeNode(stem, node string, podCIDRs []netip.Prefix, ann map[string]string) (Lease, error) {
	if err := checkName("node", node); err != nil {
		return Lease{}, err
	}
	key, err := FormatKey(podCIDRs) // checks them as the subnets of a lease
	if err != nil {
		return Lease{}, fmt.Errorf("podCIDRs: %w", err)
	}
	subnets, err := ParseKey(key)
	if err != nil {
		return Lease{}, fmt.Errorf("podCIDRs: %w", err)
	}
	l := Lease{Node: node, Backend: BackendType(ann[stem+annBackendType])}
	if l.Backend != "" {
		if err := checkName(stem+annBackendType, string(l.Backend)); err != nil {
			return Lease{}, err
		}
	}
	pub := endsOf(
		published{addr: ann[stem+annIP4], data: json.RawMessage(ann[stem+annData4]),
			addrName: stem + annIP4, dataName: stem + annData4},
		published{addr: ann[stem+annIP6], data: json.RawMessage(ann[stem+annData6]),
			addrName: stem + annIP6, dataName: stem + annData6})
	l.Paths, err = joinPaths(l.Backend, subnets, &pub)
	if err != nil {
		return Lease{}, err
	}
	if text := ann[sourcesName(stem)]; text != "" {
		// One comma too many is seen below without splitting megabytes.
		if l.Sources, err = parseSources(strings.SplitN(text, ",", maxSources+2)); err != nil {
			return Lease{}, fmt.Errorf("%s: %w", sourcesName(stem), err)
		}
	}
	return applyOverwrite(stem, l, ann)
}

// ApplyOverwrite returns l with the underlay addresses that the operator has
// set on l's Node: each overwrite annotation replaces the announced address
// of its family, which becomes a source. The agent publishes the result, so
// that a node behind NAT announces the outer address while its device keeps
// the inner one, and packets that are not translated are let in too.
func ApplyOverwrite(prefix string, l Lease, ann map[string]string) (Lease, error) {
	stem, err := annotations(prefix)
	if err != nil {
		return Lease{}, err
	}
	return applyOverwrite(stem, l, ann)
}

func applyOverwrite(stem string, l Lease, ann map[string]string) (Lease, error) {
	l = l.Clone()
	names := map[Family]string{IPv4: stem + annOverwrite4, IPv6: stem + annOverwrite6}
	for i, p := range l.Paths {
		f := FamilyOf(p.Underlay)
		text := ann[names[f]]
		if text == "" {
			continue
		}
		a, err := netip.ParseAddr(text)
		if err != nil || FamilyOf(a) != f {
			return Lease{}, fmt.Errorf("%s %q: want an %v address", names[f], clip(text), f)
		}
		if err := checkUnderlay(a); err != nil {
			return Lease{}, fmt.Errorf("%s: %w", names[f], err)
		}
		if a != p.Underlay {
			l.Sources = append(l.Sources, p.Underlay)
		}
		l.Paths[i].Underlay = a
	}
	l.Sources = normalSources(l.Sources)
	if err := checkSources(l.Sources); err != nil {
		return Lease{}, err
	}
	return l, nil
}
