// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"weft.dev/weft/policy"
	"weft.dev/weft/subnet"
)

// allowAnnotation of a pod names, apart by commas, the addresses and prefixes
// that it may send from beside its own addresses.
const allowAnnotation = subnet.Domain + "/allow-addresses"

// maxAllowed bounds the entries of that annotation: every agent has those of all
// pods in memory.
const maxAllowed = 64

// A record is what is kept of an object of the API. It is one itself
// (runtime.Object), so that a Reflector keeps nothing else.
type record struct {
	namespace, name string
	version         string // resourceVersion, until the record is in a mirror
	end             bool   // a bookmark, after the last object of a listing
	digest          uint64 // of a policy's spec
	problem         string // what of the object was not understood

	// One of these, but for bookmarks.
	pod    *policy.Pod
	policy *policy.Policy
	labels *policy.Labels // of a namespace
}

// compare orders records as snapshots do.
func (r *record) compare(o *record) int { return r.compareName(o.namespace, o.name) }

func (r *record) compareName(namespace, name string) int {
	return cmp.Or(strings.Compare(r.namespace, namespace), strings.Compare(r.name, name))
}

// same reports whether o says nothing else than r.
func (r *record) same(o *record) bool {
	if r.problem != o.problem || r.digest != o.digest || r.labels != o.labels {
		return false
	}
	return r.pod == nil || samePod(r.pod, o.pod)
}

// samePod compares all that a pod has. Labels are interned.
func samePod(a, b *policy.Pod) bool {
	return a.Namespace == b.Namespace && a.Name == b.Name && a.UID == b.UID && a.Created == b.Created && a.Node == b.Node &&
		a.Labels == b.Labels && a.HostNetwork == b.HostNetwork && a.Ended == b.Ended &&
		slices.Equal(a.Addrs, b.Addrs) && slices.Equal(a.Allowed, b.Allowed) && slices.Equal(a.Ports, b.Ports)
}

// GetObjectMeta is what a Reflector wants to know.
func (r *record) GetObjectMeta() metav1.Object {
	m := &metav1.ObjectMeta{Namespace: r.namespace, Name: r.name, ResourceVersion: r.version}
	if r.end {
		m.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	return m
}

// GetObjectKind says that no kind is told.
func (r *record) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject returns a copy of r that shares what is never modified.
func (r *record) DeepCopyObject() runtime.Object {
	c := *r
	return &c
}

// A reader makes records of objects.
type reader struct {
	seed maphash.Seed
	have *interned
	m    *mirror // has what was read before; nil if nothing was
}

func newReader() reader { return reader{maphash.MakeSeed(), newInterned(), nil} }

// with is r for what m has been told. What has not changed is taken from m, at
// once: listed again, the whole cluster would be in memory twice.
func (r reader) with(m *mirror) *reader {
	r.m = m
	return &r
}

// before returns what there was of an object, an empty record if nothing was.
func (r *reader) before(kind int, as *record) *record {
	if r.m != nil {
		if old := r.m.row(kind, as.namespace, as.name); old != nil {
			return old
		}
	}
	return &record{}
}

// record returns what counts of obj, a bookmark or an object.
func (r *reader) record(obj runtime.Object) (*record, error) {
	o, ok := obj.(metav1.Object)
	if !ok {
		return nil, fmt.Errorf("an object came as %T, want one with metadata", obj)
	}
	out := &record{namespace: r.have.word(o.GetNamespace()), name: o.GetName(), version: o.GetResourceVersion()}
	if out.name == "" {
		out.end = o.GetAnnotations()[metav1.InitialEventsAnnotationKey] == "true"
		return out, nil
	}
	switch o := obj.(type) {
	case *corev1.Pod:
		out.pod, out.problem = r.pod(o, out)
		if old := r.before(pods, out); old.pod != nil && old.same(out) {
			out.pod = old.pod
		}
	case *corev1.Namespace:
		out.labels = r.have.label(o.Labels)
	case *networkingv1.NetworkPolicy:
		if err := r.policy(o, out); err != nil {
			return nil, fmt.Errorf("NetworkPolicy %s/%s: %w", out.namespace, out.name, err)
		}
	default:
		return nil, fmt.Errorf("an object came as %T, want a Pod, Namespace or NetworkPolicy", obj)
	}
	return out, nil
}

// pod returns what policies need of o, and what of that is not understood.
func (r *reader) pod(o *corev1.Pod, as *record) (*policy.Pod, string) {
	p := policy.PodFromAPI(o, r.have.label(o.Labels))
	p.Namespace, p.Name, p.Node = as.namespace, as.name, r.have.word(p.Node)
	p.Addrs, p.Ports = slices.Clip(p.Addrs), slices.Clip(p.Ports)
	for i := range p.Ports {
		p.Ports[i].Name = r.have.word(p.Ports[i].Name)
	}
	// The API's object of a static pod is a mirror of the one that the kubelet
	// runs, which has another UID: the one that the CNI is told.
	if uid := o.Annotations[corev1.MirrorPodAnnotationKey]; uid != "" {
		p.UID = uid
	}
	text, ok := o.Annotations[allowAnnotation]
	if !ok {
		return p, ""
	}
	var problem string
	for word := range strings.SplitSeq(text, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		at, err := prefix(word)
		if err != nil {
			problem = clip(fmt.Sprintf("annotation %s: %q is no address and no prefix, it allows nothing", allowAnnotation, word))
			continue
		}
		if len(p.Allowed) == maxAllowed {
			return p, clip(fmt.Sprintf("annotation %s: %s and what follows: want at most %d addresses and prefixes", allowAnnotation, at, maxAllowed))
		}
		p.Allowed = append(p.Allowed, at)
	}
	return p, problem
}

// policy makes as the record of o.
func (r *reader) policy(o *networkingv1.NetworkPolicy, as *record) error {
	spec, err := o.Spec.Marshal()
	if err != nil {
		return err
	}
	as.digest = maphash.Bytes(r.seed, spec)
	if old := r.before(policies, as); old.policy != nil && old.digest == as.digest {
		as.policy, as.problem = old.policy, old.problem
		return nil
	}
	p, err := policy.FromAPI(o)
	if err != nil {
		as.problem = clip(err.Error())
	}
	p.Namespace, p.Name, p.Subject = as.namespace, as.name, r.have.selector(p.Subject)
	for _, rules := range p.Rules {
		for _, rule := range rules {
			for i := range rule.Peers {
				peer := &rule.Peers[i]
				peer.Namespaces, peer.Pods = r.have.selector(peer.Namespaces), r.have.selector(peer.Pods)
			}
		}
	}
	as.policy = p
	return nil
}

// prefix parses an address or a prefix.
func prefix(word string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(word); err == nil {
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(word)
	return p.Masked(), err
}

// maxDetail bounds what a Problem quotes from the API, in bytes.
const maxDetail = 300

// clip bounds text that came from the API.
func clip(text string) string {
	if len(text) <= maxDetail {
		return text
	}
	return strings.ToValidUTF8(text[:maxDetail], "") + "..."
}
