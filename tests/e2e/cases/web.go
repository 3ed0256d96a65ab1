// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/e2e/parts"
	"weft.dev/weft/tests/netlab"
)

// webManifest runs a pod on each node that our probes run in.
const webManifest = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      tolerations: [{operator: Exists}]
      containers:
      - name: web
        image: ` + parts.AgnhostImage + `
        imagePullPolicy: Never
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
`

// pause is the time between two looks.
func pause(ctx context.Context) error { return netlab.Pause(ctx, 200*time.Millisecond) }

// A site is a pod of webManifest with a place to run probes in.
type site struct {
	cluster.Pod
	*netlab.Place
	node *cluster.Node
}

// web makes sure that a pod of webManifest runs on each node, and returns them
// in the order of the nodes. They stay for the cases that follow.
func web(ctx context.Context, c *cluster.Cluster) ([]site, error) {
	if err := c.Apply(ctx, webManifest); err != nil {
		return nil, err
	}
	var pods []cluster.Pod
	err := eventually(ctx, 2*time.Minute, func(ctx context.Context) (err error) {
		if pods, err = c.Pods(ctx, "default", "app=web"); err != nil {
			return err
		}
		ready := 0
		for _, p := range pods {
			if p.Ready && len(p.IPs) == len(c.Config().Families()) {
				ready++
			}
		}
		if ready != len(c.Nodes()) || ready != len(pods) {
			return fmt.Errorf("%d of %d pods are ready, with addresses of all families", ready, len(pods))
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("pods of DaemonSet web: %w", err)
	}
	var out []site
	for _, n := range c.Nodes() {
		at := slices.IndexFunc(pods, func(p cluster.Pod) bool { return p.Node == n.Name() })
		if at < 0 {
			closeAll(out)
			return nil, fmt.Errorf("no pod of DaemonSet web on %s", n.Name())
		}
		place, err := pods[at].Place()
		if err != nil {
			closeAll(out)
			return nil, err
		}
		out = append(out, site{Pod: pods[at], Place: place, node: n})
	}
	return out, nil
}

func closeAll(sites []site) {
	for _, s := range sites {
		s.Close()
	}
}

// Name is the pod's.
func (s site) Name() string { return s.Pod.Name + " on " + s.node.Name() }

// askedAt is one question: does the server at an address see the client's own.
type askedAt struct {
	from   *netlab.Place
	at     netip.Addr
	within []netip.Addr // what the server may see; none: what the client's socket says
}

// ask asks the questions that gather has about the pods of web. The servers that
// gather starts end with it.
func ask(ctx context.Context, c *cluster.Cluster, gather func(context.Context, []site) ([]askedAt, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sites, err := web(ctx, c)
	if err != nil {
		return err
	}
	defer closeAll(sites)
	questions, err := gather(ctx, sites)
	if err != nil {
		return err
	}
	return askAll(ctx, questions)
}

// askAll asks all questions and returns what is wrong.
func askAll(ctx context.Context, questions []askedAt) error {
	var errs []error
	for _, q := range questions {
		seen, own, err := q.from.AskAddress(ctx, q.at)
		switch {
		case err != nil:
			errs = append(errs, err)
		case len(q.within) == 0 && seen != own:
			errs = append(errs, fmt.Errorf("%s sees %s, which is %s at %s", q.at, seen, own, q.from.Name()))
		case len(q.within) > 0 && !slices.Contains(q.within, seen):
			errs = append(errs, fmt.Errorf("%s sees %s, which is %s at %s; want one of %v", q.at, seen, own, q.from.Name(), q.within))
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("%d of %d connections: %w", len(errs), len(questions), errors.Join(errs...))
	}
	return nil
}

// checkPods connects every pod with every other in every family.
func checkPods(ctx context.Context, c *cluster.Cluster) error {
	return ask(ctx, c, func(ctx context.Context, sites []site) ([]askedAt, error) {
		var questions []askedAt
		for _, to := range sites {
			if err := to.ServeAddress(ctx); err != nil {
				return nil, err
			}
			for _, from := range sites {
				if from.Pod.Name == to.Pod.Name {
					continue
				}
				for _, ip := range to.IPs {
					questions = append(questions, askedAt{from: from.Place, at: ip})
				}
			}
		}
		return questions, nil
	})
}

// checkNodesAndPods connects every node with every pod, in both directions.
// A node's addresses in the pod network are its bridge's; with others it is
// outside, see checkOutside.
func checkNodesAndPods(ctx context.Context, c *cluster.Cluster) error {
	return ask(ctx, c, func(ctx context.Context, sites []site) ([]askedAt, error) {
		var questions []askedAt
		for _, s := range sites {
			if err := errors.Join(s.ServeAddress(ctx), s.node.ServeAddress(ctx)); err != nil {
				return nil, err
			}
			for _, other := range sites {
				for _, ip := range other.IPs {
					questions = append(questions, askedAt{from: s.node.Place, at: ip})
				}
				inside, err := addresses(other.node.Place, bridgeName)
				if err != nil {
					return nil, err
				}
				for _, ip := range inside {
					questions = append(questions, askedAt{from: s.Place, at: ip})
				}
			}
			for _, ip := range s.node.Addrs() { // its own node's, which it does not leave for
				questions = append(questions, askedAt{from: s.Place, at: ip})
			}
		}
		return questions, nil
	})
}

// checkOutside connects pods with a host that is no node and has no route to
// pods, and with the other nodes' own addresses: both see the address of the
// pod's node, for underlays need not know pods.
func checkOutside(ctx context.Context, c *cluster.Cluster) error {
	return ask(ctx, c, func(ctx context.Context, sites []site) ([]askedAt, error) {
		if err := c.Fabric().ServeAddress(ctx); err != nil {
			return nil, err
		}
		outside := c.Outside()
		for _, s := range sites {
			if err := s.node.ServeAddress(ctx); err != nil {
				return nil, err
			}
			outside = append(outside, s.node.Addrs()...)
		}
		var questions []askedAt
		for _, s := range sites {
			for _, ip := range outside {
				if slices.Contains(s.node.Addrs(), ip) {
					continue
				}
				var want []netip.Addr
				for _, own := range s.node.Addrs() {
					if subnet.FamilyOf(own) == subnet.FamilyOf(ip) {
						want = append(want, own)
					}
				}
				questions = append(questions, askedAt{from: s.Place, at: ip, within: want})
			}
		}
		return questions, nil
	})
}
