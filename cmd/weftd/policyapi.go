// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/cmd/internal/api"
	"weft.dev/weft/policy"
	"weft.dev/weft/policy/enforce"
	"weft.dev/weft/policy/rules"
)

// errNoPolicies is the answer to who asks about policies that are not enforced.
var errNoPolicies = errors.New("this agent enforces no policies: they need --store=kube and --network-policy")

// policyRoutes answer `weft policy`.
func (a *agent) policyRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST "+api.AdmitPath+"{container}/{interface}", a.admit)
	for path, answer := range map[string]func(context.Context, enforce.Status, url.Values) (any, error){
		api.PolicyPath: listPolicies, api.ExplainPath: a.explain, api.RulesPath: a.policyRules,
	} {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			st, err := a.enforced()
			var doc any
			if err == nil {
				doc, err = answer(r.Context(), st, r.URL.Query())
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			writeJSON(w, doc)
		})
	}
}

// enforced returns what is in force.
func (a *agent) enforced() (enforce.Status, error) {
	if !a.o.enforces() {
		return enforce.Status{}, errNoPolicies
	}
	e := a.enforcer.Load()
	if e == nil {
		return enforce.Status{}, errors.New(a.waiting("starting"))
	}
	st := e.Status()
	if st.Cluster == nil {
		return st, errors.New(st.Reason)
	}
	return st, nil
}

func listPolicies(_ context.Context, st enforce.Status, _ url.Values) (any, error) {
	doc := api.Policies{Policies: []api.PolicyRow{}}
	for _, p := range st.Cluster.Policies {
		row := api.PolicyRow{Namespace: p.Namespace, Name: p.Name, Pods: []string{}}
		for _, d := range policy.Directions() {
			if p.Isolates[d] {
				row.Isolates = append(row.Isolates, d.String())
			}
		}
		for _, pod := range st.Cluster.Pods {
			if st.Has(pod) && (p.Selects(pod, policy.Ingress) || p.Selects(pod, policy.Egress)) {
				row.Pods = append(row.Pods, pod.String())
			}
		}
		doc.Policies = append(doc.Policies, row)
	}
	return doc, nil
}

func (a *agent) explain(ctx context.Context, st enforce.Status, q url.Values) (any, error) {
	k, err := packet(st.Cluster, q)
	if err != nil {
		return nil, err
	}
	e := st.Explain(k)
	kernel, err := a.comparePolicies(ctx, st)
	if err != nil {
		return nil, err
	}
	return api.Explanation{Allowed: e.Allowed, Text: e.String(), Here: st.Table.Allows(k), Kernel: kernel}, nil
}

// packet is what is asked about.
func packet(c *policy.Cluster, q url.Values) (k policy.Packet, err error) {
	port, err := strconv.ParseUint(q.Get("port"), 10, 16)
	if err != nil {
		return k, fmt.Errorf("port %q: want 0 to 65535", q.Get("port"))
	}
	k.Port = uint16(port)
	if k.Proto, err = protocol(q.Get("proto")); err != nil {
		return k, err
	}
	src, err := ends(c, q.Get("src"))
	if err != nil {
		return k, err
	}
	dst, err := ends(c, q.Get("dst"))
	if err != nil {
		return k, err
	}
	for _, s := range src { // pods of two families meet in the first that both have
		for _, d := range dst {
			if s.BitLen() == d.BitLen() {
				k.Src, k.Dst = s, d
				return k, nil
			}
		}
	}
	return k, fmt.Errorf("%s and %s have no address of one family", q.Get("src"), q.Get("dst"))
}

// ends returns the addresses that are meant by an address or a pod's name.
func ends(c *policy.Cluster, s string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	for _, p := range c.Pods {
		if p.String() == s && len(p.Addrs) > 0 {
			return p.Addrs, nil
		}
	}
	return nil, fmt.Errorf("%q is no address, and no pod NAMESPACE/NAME that has one", s)
}

// protocol returns the number of an IP protocol.
func protocol(s string) (uint8, error) {
	switch strings.ToLower(s) {
	case "", "tcp":
		return policy.TCP, nil
	case "udp":
		return policy.UDP, nil
	case "sctp":
		return policy.SCTP, nil
	case "icmp":
		return 1, nil // IANA, protocol numbers
	case "icmpv6":
		return 58, nil
	}
	n, err := strconv.ParseUint(s, 10, 8)
	if err != nil {
		return 0, fmt.Errorf("protocol %q: want tcp, udp, sctp, icmp, icmpv6 or 0 to 255", s)
	}
	return uint8(n), nil
}

// desiredPolicies is the whole table that is in force by st.
func (a *agent) desiredPolicies(st enforce.Status) nft.Desired {
	return rules.Desired(a.policyParams(), st.Generation, st.Table, st.Subnets)
}

// comparePolicies says whether the kernel holds what st says it does.
func (a *agent) comparePolicies(ctx context.Context, st enforce.Status) (string, error) {
	conn, err := nft.Dial()
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }() // nothing is lost by closing late
	have, err := conn.Dump(ctx, rules.Table())
	if err != nil {
		return "", fmt.Errorf("read table inet %s: %w", rules.TableName, err)
	}
	plan := nft.Diff(a.desiredPolicies(st), have)
	switch {
	case plan.Replace:
		return "not as compiled: " + strings.Join(plan.Why, ", "), nil
	case !plan.Empty():
		return fmt.Sprintf("not as compiled: %d elements are missing, %d are not ours", len(plan.Add), len(plan.Delete)), nil
	}
	return "as compiled", nil
}

func (a *agent) policyRules(_ context.Context, st enforce.Status, _ url.Values) (any, error) {
	return api.Rules{NFT: nft.Diff(a.desiredPolicies(st), nft.Content{}).String()}, nil
}
