// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// FromAPI returns np as a Policy. What of it cannot be understood lets nothing
// pass, and is named by the error: the pods are isolated all the same. A
// selector of the subject that cannot be understood selects every pod.
func FromAPI(np *networkingv1.NetworkPolicy) (*Policy, error) {
	p := &Policy{Namespace: np.Namespace, Name: np.Name}
	var errs []error
	subject, err := metav1.LabelSelectorAsSelector(&np.Spec.PodSelector)
	if err != nil {
		errs = append(errs, fmt.Errorf("spec.podSelector: %w", err))
		subject = labels.Everything()
	}
	p.Subject = subject
	p.Isolates = isolates(np.Spec)
	for i, r := range np.Spec.Ingress {
		rule, err := fromRule(r.From, r.Ports)
		p.Rules[Ingress], errs = addRule(p.Rules[Ingress], errs, rule, err, fmt.Sprintf("spec.ingress[%d]", i))
	}
	for i, r := range np.Spec.Egress {
		rule, err := fromRule(r.To, r.Ports)
		p.Rules[Egress], errs = addRule(p.Rules[Egress], errs, rule, err, fmt.Sprintf("spec.egress[%d]", i))
	}
	return p, errors.Join(errs...)
}

// addRule appends rule, which may be without what err is about. Each rule
// keeps its place, so that explanations name it as the API does.
func addRule(rules []Rule, errs []error, rule Rule, err error, where string) ([]Rule, []error) {
	if err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", where, err))
	}
	return append(rules, rule), errs
}

// isolates returns the directions of spec. Without policyTypes they are
// Ingress, and Egress if there are rules for it.
func isolates(spec networkingv1.NetworkPolicySpec) [2]bool {
	if len(spec.PolicyTypes) == 0 {
		return [2]bool{Ingress: true, Egress: len(spec.Egress) > 0}
	}
	return [2]bool{
		Ingress: slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeIngress),
		Egress:  slices.Contains(spec.PolicyTypes, networkingv1.PolicyTypeEgress),
	}
}

// fromRule returns a rule of the API. One that has peers or ports of which
// none can be understood is a rule for nobody, not for everybody.
func fromRule(peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) (Rule, error) {
	var r Rule
	var errs []error
	for i, p := range peers {
		peer, err := fromPeer(p)
		if err != nil {
			errs = append(errs, fmt.Errorf("peer %d: %w", i, err))
			continue
		}
		r.Peers = append(r.Peers, peer)
	}
	for i, p := range ports {
		port, err := fromPort(p)
		if err != nil {
			errs = append(errs, fmt.Errorf("port %d: %w", i, err))
			continue
		}
		r.Ports = append(r.Ports, port)
	}
	if len(peers) > 0 && len(r.Peers) == 0 || len(ports) > 0 && len(r.Ports) == 0 {
		r = Rule{Peers: []Peer{{Pods: labels.Nothing()}}}
	}
	return r, errors.Join(errs...)
}

func fromPeer(p networkingv1.NetworkPolicyPeer) (Peer, error) {
	if p.IPBlock != nil {
		b, err := fromBlock(*p.IPBlock)
		return Peer{Block: b}, err
	}
	var out Peer
	var err error
	if p.NamespaceSelector != nil {
		if out.Namespaces, err = metav1.LabelSelectorAsSelector(p.NamespaceSelector); err != nil {
			return Peer{}, fmt.Errorf("namespaceSelector: %w", err)
		}
	}
	if p.PodSelector != nil {
		if out.Pods, err = metav1.LabelSelectorAsSelector(p.PodSelector); err != nil {
			return Peer{}, fmt.Errorf("podSelector: %w", err)
		}
	}
	if p.NamespaceSelector == nil && p.PodSelector == nil {
		return Peer{}, errors.New("neither ipBlock nor a selector")
	}
	return out, nil
}

func fromBlock(b networkingv1.IPBlock) (*Block, error) {
	cidr, err := prefix(b.CIDR)
	if err != nil {
		return nil, fmt.Errorf("ipBlock.cidr: %w", err)
	}
	out := &Block{CIDR: cidr}
	for i, e := range b.Except {
		p, err := prefix(e)
		if err != nil { // left out, it would let more pass
			return nil, fmt.Errorf("ipBlock.except[%d]: %w", i, err)
		}
		out.Except = append(out.Except, p)
	}
	return out, nil
}

// prefix parses s. Bits behind the length do not count, as in the API.
func prefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	if a := p.Addr(); a.Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("%q is not a prefix of IPv4 addresses", s)
		}
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

func fromPort(p networkingv1.NetworkPolicyPort) (Port, error) {
	out := Port{Proto: TCP}
	if p.Protocol != nil {
		proto, ok := Protocol(*p.Protocol)
		if !ok {
			return Port{}, fmt.Errorf("protocol %q is not TCP, UDP or SCTP", *p.Protocol)
		}
		out.Proto = proto
	}
	if p.Port == nil {
		if p.EndPort != nil {
			return Port{}, fmt.Errorf("endPort %d without port", *p.EndPort)
		}
		return out, nil
	}
	if name := p.Port.StrVal; name != "" {
		if p.EndPort != nil {
			return Port{}, fmt.Errorf("endPort %d with the named port %q", *p.EndPort, name)
		}
		out.Name = name
		return out, nil
	}
	from, to := p.Port.IntVal, p.Port.IntVal
	if p.EndPort != nil {
		to = *p.EndPort
	}
	if from < 1 || to < from || to > lastPort {
		return Port{}, fmt.Errorf("ports %d to %d are not in 1 to %d, ascending", from, to, lastPort)
	}
	out.From, out.To = uint16(from), uint16(to)
	return out, nil
}

// Protocol returns the number of a protocol of the API.
func Protocol(p corev1.Protocol) (uint8, bool) {
	switch p {
	case corev1.ProtocolTCP, "":
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	case corev1.ProtocolSCTP:
		return SCTP, true
	}
	return 0, false
}

// PodFromAPI returns pod with labels, which are pod's and may be shared.
// Addresses that do not parse are left out.
func PodFromAPI(pod *corev1.Pod, l *Labels) *Pod {
	p := &Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID), Created: pod.CreationTimestamp.Unix(), Node: pod.Spec.NodeName,
		Labels: l, HostNetwork: pod.Spec.HostNetwork, Ended: pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed,
	}
	for _, ip := range pod.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			p.Addrs = append(p.Addrs, a.Unmap())
		}
	}
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways { // a sidecar; others have ended
			p.addPorts(c)
		}
	}
	for _, c := range pod.Spec.Containers {
		p.addPorts(c)
	}
	return p
}

// addPorts adds the named ports of c.
func (p *Pod) addPorts(c corev1.Container) {
	for _, port := range c.Ports {
		if proto, ok := Protocol(port.Protocol); ok && port.Name != "" && port.ContainerPort > 0 && port.ContainerPort <= lastPort {
			p.Ports = append(p.Ports, NamedPort{Name: port.Name, Proto: proto, Number: uint16(port.ContainerPort)})
		}
	}
}
