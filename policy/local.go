// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net"
	"net/netip"
	"slices"
)

// Registered is what a node knows by itself of a pod that it has set up: the
// addresses that it has given it, before the API says so and after.
type Registered struct {
	// Namespace, Name and UID are the pod's. Without a name it is none of
	// Kubernetes; without a UID, which some runtimes do not tell, it is the pod
	// of that name.
	Namespace, Name, UID string
	Container            string // ID of its sandbox
	Addrs                []netip.Addr
	Links                []Link // none where the node does not know
	// Pod is the pod as the API had it when it was registered; nil if it was not
	// asked. It counts while a Cluster does not have the pod.
	Pod *Pod
}

// A Link is what joins a pod to its node.
type Link struct {
	Port string           // name of the node's end
	MAC  net.HardwareAddr // of the pod's
}

// is reports whether r is about p.
func (r *Registered) is(p *Pod) bool {
	return r.Name != "" && r.Namespace == p.Namespace && r.Name == p.Name && (r.UID == "" || r.UID == p.UID)
}

// With returns c with what node knows of its own pods, in the order in which it
// has set them up: these have their addresses whatever the API says, and nobody
// else has. Of what is registered about one pod, or with one address, the last
// counts. A pod that c does not have, not yet or not any more, is added; one
// that is none of Kubernetes is in no namespace, so that no policy selects it.
// A pod of which nothing is known but its name has no labels.
func (c Cluster) With(node string, local []Registered) Cluster {
	if len(local) == 0 {
		return c
	}
	o := newOverlay(node, local)
	pods := make([]*Pod, 0, len(c.Pods)+len(local))
	for _, p := range c.Pods {
		pods = append(pods, o.pod(p))
	}
	c.Pods = append(pods, o.rest()...)
	return c
}

// An overlay is what a node knows of its own pods, made ready to be applied.
type overlay struct {
	node   string
	local  []Registered
	named  map[[2]string][]int // by namespace and name
	holder map[netip.Addr]int  // who has an address
	placed []bool              // those whose pod was there, or that no longer count
}

func newOverlay(node string, local []Registered) *overlay {
	o := &overlay{node: node, local: local, named: map[[2]string][]int{}, holder: map[netip.Addr]int{}, placed: make([]bool, len(local))}
	for i := range local {
		r := &local[i]
		key := [2]string{r.Namespace, r.Name}
		for _, before := range o.named[key] {
			if r.Name != "" && local[before].UID == r.UID { // another sandbox of the same pod
				o.placed[before] = true
			}
		}
		o.named[key] = append(o.named[key], i)
		for _, a := range r.Addrs {
			o.holder[a.Unmap()] = i
		}
	}
	return o
}

// addrs are those that the i-th still has.
func (o *overlay) addrs(i int) []netip.Addr {
	var out []netip.Addr
	for _, a := range o.local[i].Addrs {
		if a = a.Unmap(); o.holder[a] == i {
			out = append(out, a)
		}
	}
	return out
}

// pod returns p with the addresses that it has by what is registered.
func (o *overlay) pod(p *Pod) *Pod {
	if p.HostNetwork {
		return p
	}
	own := -1
	for _, i := range o.named[[2]string{p.Namespace, p.Name}] {
		if !o.placed[i] && o.local[i].is(p) {
			own = i // the last
		}
	}
	addrs, node := p.Addrs, p.Node
	if own >= 0 {
		o.placed[own] = true
		addrs, node = o.addrs(own), o.node // its node may not have been told yet
	} else if slices.ContainsFunc(p.Addrs, o.taken) {
		addrs = slices.DeleteFunc(slices.Clone(p.Addrs), o.taken)
	}
	if slices.Equal(addrs, p.Addrs) && node == p.Node {
		return p
	}
	out := *p
	out.Addrs, out.Node = addrs, node
	return &out
}

// taken reports whether a is a registered pod's.
func (o *overlay) taken(a netip.Addr) bool {
	_, ok := o.holder[a]
	return ok
}

// rest returns the pods that were not there.
func (o *overlay) rest() []*Pod {
	var out []*Pod
	for i, r := range o.local {
		if o.placed[i] {
			continue
		}
		p := Pod{Namespace: r.Namespace, Name: r.Name, UID: r.UID}
		if r.Name == "" {
			p.Namespace, p.Name = "", r.Container
		} else if r.Pod != nil && r.is(r.Pod) {
			p = *r.Pod
		}
		p.Node, p.Addrs = o.node, o.addrs(i)
		out = append(out, &p)
	}
	return out
}
