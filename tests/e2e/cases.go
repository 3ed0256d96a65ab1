// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/e2e/parts"
)

// cases are our own tests. They run in this order on one cluster, whose nodes
// are Ready.
func cases() []testCase {
	return []testCase{
		{"every node has podCIDRs of every family and no taint", checkNodes},
		{"a pod on each node reaches a pod on each node, in every family", checkPods},
	}
}

// checkNodes looks at what the API says of the nodes.
func checkNodes(ctx context.Context, c *cluster.Cluster) error {
	states, err := c.NodeStates(ctx)
	if err != nil {
		return err
	}
	want := 1
	if c.Config().Family == "dual" {
		want = 2
	}
	var errs []error
	for _, s := range states {
		if len(s.PodCIDRs) != want {
			errs = append(errs, fmt.Errorf("%s has podCIDRs %v, want %d", s.Name, s.PodCIDRs, want))
		}
		if len(s.Taints) > 0 {
			errs = append(errs, fmt.Errorf("%s has taints %v", s.Name, s.Taints))
		}
	}
	return errors.Join(errs...)
}

// webManifest runs a server on each node that says what its client's address
// is.
const webManifest = `apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: web
        image: ` + parts.AgnhostImage + `
        imagePullPolicy: Never
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}
`

// A webPod is a pod of webManifest.
type webPod struct {
	Metadata struct{ Name string }
	Spec     struct{ NodeName string }
	Status   struct {
		PodIPs []struct{ IP string }
	}
}

// checkPods connects every pod with every other, and compares the client's
// address at both ends: it must not be translated.
func checkPods(ctx context.Context, c *cluster.Cluster) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if err := c.Apply(ctx, webManifest); err != nil {
		return err
	}
	defer c.Kubectl(context.WithoutCancel(ctx), "delete", "daemonset", "web", "--wait=false") // the next run has a new cluster
	if _, err := c.Kubectl(ctx, "rollout", "status", "daemonset/web", "--timeout=90s"); err != nil {
		return err
	}
	var list struct{ Items []webPod }
	if err := c.GetJSON(ctx, "/api/v1/namespaces/default/pods?labelSelector=app%3Dweb", &list); err != nil {
		return err
	}
	var errs []error
	if len(list.Items) != len(c.Nodes()) {
		errs = append(errs, fmt.Errorf("%d pods on %d nodes", len(list.Items), len(c.Nodes())))
	}
	for _, from := range list.Items {
		for _, to := range list.Items {
			if from.Metadata.Name != to.Metadata.Name {
				errs = append(errs, askClientIP(ctx, c, from, to))
			}
		}
	}
	return errors.Join(errs...)
}

// askClientIP asks one pod from another what the client's address is.
func askClientIP(ctx context.Context, c *cluster.Cluster, from, to webPod) error {
	if len(from.Status.PodIPs) != len(to.Status.PodIPs) {
		return fmt.Errorf("%s on %s has addresses %v, %s on %s has %v", from.Metadata.Name, from.Spec.NodeName, from.Status.PodIPs,
			to.Metadata.Name, to.Spec.NodeName, to.Status.PodIPs)
	}
	var errs []error
	for i, at := range to.Status.PodIPs {
		url := "http://" + net.JoinHostPort(at.IP, "8080") + "/clientip"
		out, err := c.Kubectl(ctx, "exec", from.Metadata.Name, "--", "curl", "-s", "-g", "--max-time", "5", url)
		if err != nil {
			errs = append(errs, fmt.Errorf("from %s on %s to %s on %s: %w", from.Metadata.Name, from.Spec.NodeName, at.IP, to.Spec.NodeName, err))
			continue
		}
		seen, err := netip.ParseAddrPort(strings.TrimSpace(out))
		if own := from.Status.PodIPs[i].IP; err != nil || seen.Addr().Unmap().String() != own {
			errs = append(errs, fmt.Errorf("%s on %s sees client %q, which is %s on %s", at.IP, to.Spec.NodeName, out, own, from.Spec.NodeName))
		}
	}
	return errors.Join(errs...)
}
