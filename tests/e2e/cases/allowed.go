// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/e2e/parts"
)

// examples are the five policies that docs/policy.md shows, which are from
// weft's founding chapter. tests/docs compares the two.
//
//go:embed testdata/examples.yaml
var examples string

// Where the examples' pods are. The selectors of the examples find namespaces by
// the label name.
func exampleNamespaces() map[string]string {
	return map[string]string{"app": "name: app", "town-dns": "name: kube-system", "frontend": "name: frontend", "database": "name: database"}
}

func examplePeople() []person {
	return []person{
		{name: "web", namespace: "app", labels: "app: web", node: 0, tcp: []int{80, 443}},
		{name: "frontend", namespace: "app", labels: "app: frontend", node: 1, tcp: []int{80}},
		{name: "backend", namespace: "app", labels: "app: backend", node: 1, tcp: []int{80, 81, 9000, 9001, 9002, 9003}, udp: []int{80}},
		{name: "api", namespace: "app", labels: "app: api", node: 2, tcp: []int{8080, 8081}},
		{name: "client", namespace: "app", labels: "role: api-client", node: 0},
		{name: "dns", namespace: "town-dns", node: 2, tcp: []int{53, 54}, udp: []int{53}},
		{name: "shop", namespace: "frontend", node: 2},
		{name: "stranger", namespace: "frontend", labels: "app: frontend, role: api-client", node: 1},
		{name: "db", namespace: "database", node: 1, tcp: []int{5432, 5433}},
		{name: "host", namespace: "app", labels: "app: frontend", node: 2, host: true},
	}
}

// example returns one of the examples as it is for namespace app.
func example(name string) (string, error) {
	for _, doc := range strings.Split(examples, "\n---\n") {
		if strings.Contains(doc, "\n  name: "+name+"\n") {
			return strings.Replace(doc, "\n  name: "+name+"\n", "\n  name: "+name+"\n  namespace: app\n", 1), nil
		}
	}
	return "", fmt.Errorf("no example is called %s", name)
}

// tryExamples puts each of the five policies in force, by itself, and looks at
// what passes.
func tryExamples(ctx context.Context, c *cluster.Cluster) (err error) {
	f, err := settle(ctx, c, exampleNamespaces(), examplePeople())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.leave(context.WithoutCancel(ctx), exampleNamespaces())) }()
	for _, step := range exampleTrips() {
		doc, err := example(step.policy)
		if err != nil {
			return err
		}
		if err := f.under(ctx, doc, step.trips); err != nil {
			return fmt.Errorf("under %s: %w", step.policy, err)
		}
	}
	return errors.Join(f.outsiders(ctx), f.services(ctx))
}

// Hosts outside of the cluster for allow-external: one in its block, one in the
// exception and one in neither.
const (
	outsideIn, outsideBarred, outsideElse = "172.17.5.5", "172.17.1.5", "198.51.100.7"
)

// outsiders makes the fabric those hosts, with a route to web's node, and tries
// them. It is a matter of IPv4, for which the example is.
func (f *folk) outsiders(ctx context.Context) (err error) {
	web := f.at["web"]
	subnets, err := subnets(ctx, f.c, web.Node)
	if err != nil {
		return err
	}
	var to, via netip.Addr
	var in netip.Prefix
	for _, a := range web.IPs {
		for _, s := range subnets {
			for _, n := range f.c.Nodes()[0].Addrs() {
				if a.Is4() && n.Is4() && s.Contains(a) {
					to, via, in = a, n, s
				}
			}
		}
	}
	if !to.IsValid() {
		return nil
	}
	run := func(ctx context.Context, args ...string) error {
		_, err := f.c.Fabric().Run(ctx, append([]string{"ip"}, args...)...)
		return err
	}
	route := []string{in.String(), "via", via.String()}
	undo := [][]string{append([]string{"route", "del"}, route...)}
	defer func() {
		for _, args := range undo {
			err = errors.Join(err, run(context.WithoutCancel(ctx), args...))
		}
	}()
	if err := run(ctx, append([]string{"route", "add"}, route...)...); err != nil {
		return err
	}
	for _, a := range []string{outsideIn, outsideBarred, outsideElse} {
		if err := run(ctx, "addr", "add", a+"/32", "dev", "lo"); err != nil {
			return err
		}
		undo = append(undo, []string{"addr", "del", a + "/32", "dev", "lo"})
	}
	doc, err := example("allow-external")
	if err != nil {
		return err
	}
	err = f.under(ctx, doc, []trip{
		{outsideIn, to.String(), "tcp", 80, true}, {outsideIn, to.String(), "tcp", 443, false},
		{outsideBarred, to.String(), "tcp", 80, false}, {outsideElse, to.String(), "tcp", 80, false},
	})
	if err != nil {
		return fmt.Errorf("from outside under allow-external: %w", err)
	}
	return nil
}

// under makes trips while policies are in force.
func (f *folk) under(ctx context.Context, policies string, trips []trip) error {
	if err := f.c.Apply(ctx, policies); err != nil {
		return err
	}
	err := f.try(ctx, trips)
	if _, e := f.c.Kubectl(ctx, "-n", "app", "delete", "networkpolicy", "--all"); e != nil {
		err = errors.Join(err, e)
	}
	return err
}

type exampleStep struct {
	policy string
	trips  []trip
}

func exampleTrips() []exampleStep {
	return []exampleStep{
		{"default-deny-all", []trip{
			{"frontend", "backend", "tcp", 80, false}, {"frontend", "dns", "udp", 53, false}, {"shop", "web", "tcp", 80, false},
			{"shop", "db", "tcp", 5432, true}, {"web", "web", "tcp", 80, true},
		}},
		{"allow-frontend-to-backend", []trip{
			{"frontend", "backend", "tcp", 80, true}, {"frontend", "backend", "tcp", 81, false}, {"frontend", "backend", "udp", 80, false},
			{"web", "backend", "tcp", 80, false}, {"stranger", "backend", "tcp", 80, false}, {"backend", "frontend", "tcp", 80, true},
			{"host", "backend", "tcp", 80, false}, // its labels are not the node's
		}},
		{"allow-external", []trip{{"frontend", "web", "tcp", 80, false}, {"shop", "web", "tcp", 443, false}}},
		{"allow-dns-egress", []trip{
			{"web", "dns", "udp", 53, true}, {"web", "dns", "tcp", 53, true}, {"web", "dns", "tcp", 54, false},
			{"web", "backend", "tcp", 80, false}, {"frontend", "web", "tcp", 80, true},
		}},
		{"layered-policy", []trip{
			{"shop", "api", "tcp", 8080, true}, {"client", "api", "tcp", 8080, true}, {"stranger", "api", "tcp", 8080, true},
			{"web", "api", "tcp", 8080, false}, {"shop", "api", "tcp", 8081, false}, {"api", "db", "tcp", 5432, true},
			{"api", "db", "tcp", 5433, false}, {"api", "dns", "udp", 53, false},
		}},
	}
}

// A Service in front of backend, and a policy with a range of ports.
const (
	backendService = `apiVersion: v1
kind: Service
metadata: {name: backend, namespace: app}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: backend}
  ports: [{name: http, port: 8080, targetPort: 80}, {name: other, port: 8081, targetPort: 81}]
`
	rangePolicy = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a-range, namespace: app}
spec:
  podSelector: {matchLabels: {app: backend}}
  ingress:
  - from: [{podSelector: {matchLabels: {app: frontend}}}]
    ports: [{protocol: TCP, port: 9000, endPort: 9002}]
`
)

// services looks at policies behind a Service, at ranges of ports, and at a node
// that is named by its address.
func (f *folk) services(ctx context.Context) error {
	if err := f.c.Apply(ctx, backendService); err != nil {
		return err
	}
	var service struct{ Spec struct{ ClusterIPs []string } }
	if err := f.c.GetJSON(ctx, "/api/v1/namespaces/app/services/backend", &service); err != nil {
		return err
	}
	var trips []trip
	for _, ip := range service.Spec.ClusterIPs {
		trips = append(trips, trip{"frontend", ip, "tcp", 8080, true}, trip{"frontend", ip, "tcp", 8081, false}, trip{"web", ip, "tcp", 8080, false})
	}
	doc, err := example("allow-frontend-to-backend")
	if err != nil {
		return err
	}
	if err := f.under(ctx, doc, trips); err != nil {
		return fmt.Errorf("through a Service: %w", err)
	}
	err = f.under(ctx, rangePolicy, []trip{
		{"frontend", "backend", "tcp", 9000, true}, {"frontend", "backend", "tcp", 9001, true}, {"frontend", "backend", "tcp", 9002, true},
		{"frontend", "backend", "tcp", 9003, false}, {"frontend", "backend", "tcp", 80, false},
	})
	if err != nil {
		return fmt.Errorf("a range of ports: %w", err)
	}
	sources, err := f.hostSources(ctx)
	if err != nil {
		return err
	}
	if err := f.under(ctx, nodePolicy(sources), []trip{{"host", "backend", "tcp", 80, true}, {"frontend", "backend", "tcp", 80, false}}); err != nil {
		return fmt.Errorf("a node by its address: %w", err)
	}
	return nil
}

// hostSources are the addresses that a host-network pod's packets come from to
// pods of other nodes: those of the node's VXLAN devices, which are the first of
// its subnets, and its own.
func (f *folk) hostSources(ctx context.Context) ([]netip.Addr, error) {
	host := f.at["host"]
	subnets, err := subnets(ctx, f.c, host.Node)
	if err != nil {
		return nil, err
	}
	out := slices.Clone(host.IPs)
	for _, p := range subnets {
		out = append(out, p.Addr())
	}
	return out, nil
}

// subnets are those of a node's pods.
func subnets(ctx context.Context, c *cluster.Cluster, node string) ([]netip.Prefix, error) {
	state, err := c.Node(ctx, node)
	if err != nil {
		return nil, err
	}
	var out []netip.Prefix
	for _, s := range state.PodCIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("podCIDR of %s: %w", node, err)
		}
		out = append(out, p)
	}
	return out, nil
}

func nodePolicy(list []netip.Addr) string {
	var b strings.Builder
	b.WriteString(`apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: a-node, namespace: app}
spec:
  podSelector: {matchLabels: {app: backend}}
  ingress:
  - from:
`)
	for _, a := range list {
		fmt.Fprintf(&b, "    - ipBlock: {cidr: %q}\n", netip.PrefixFrom(a, a.BitLen()))
	}
	return b.String()
}

// probed is a pod that kubelet probes, in a namespace that lets nothing in or
// out.
const probed = `apiVersion: v1
kind: Namespace
metadata: {name: shut}
---
` + denyAll + `apiVersion: v1
kind: Pod
metadata: {name: probed, namespace: shut, labels: {app: probed}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: probed
    image: AGNHOST
    imagePullPolicy: Never
    args: [netexec, --http-port=8080]
    readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
    livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1, failureThreshold: 1}
    startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
`

// tryProbes sees that kubelet reaches a pod that nobody else does, and goes on
// to.
func tryProbes(ctx context.Context, c *cluster.Cluster) (err error) {
	defer func() {
		_, e := c.Kubectl(context.WithoutCancel(ctx), "delete", "namespace", "shut", "--ignore-not-found", "--wait=true")
		err = errors.Join(err, e)
	}()
	if err := c.Apply(ctx, strings.Replace(probed, "AGNHOST", parts.AgnhostImage, 1)); err != nil {
		return err
	}
	ready := func(ctx context.Context) error {
		pods, err := c.Pods(ctx, "shut", "app=probed")
		if err == nil && (len(pods) != 1 || !pods[0].Ready || pods[0].Restarts > 0) {
			err = fmt.Errorf("under a policy that denies all: %+v", pods)
		}
		return err
	}
	if err := eventually(ctx, time.Minute, ready); err != nil {
		return err
	}
	for range 20 {
		if err := pause(ctx); err != nil {
			return err
		}
		if err := ready(ctx); err != nil {
			return err
		}
	}
	return nil
}
