// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"weft.dev/weft/cmd/internal/api"
	"weft.dev/weft/internal/kubeapi"
	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/kube"
)

// trace is what an agent notes in the state directory before it writes on a
// Node, so that --cleanup finds that Node again: it runs on the host, where
// nothing of the pod that the agent was is left. It holds no credentials.
type trace struct {
	Node       string `json:"node"`
	Prefix     string `json:"annotationPrefix,omitempty"`
	Flannel    bool   `json:"flannelCompat,omitempty"`
	Kubeconfig string `json:"kubeconfig,omitempty"`
	Server     string `json:"server,omitempty"`
}

func (o *options) tracePath() string { return filepath.Join(o.StateDir, "node.json") }

// remember writes down that this agent's leases are on a Node. What an agent
// with the store on the Node API wrote stays when the next one is on etcd: the
// Node's annotations stay, too.
func (o *options) remember() error {
	if o.Store != storeKube {
		return nil
	}
	text, err := json.MarshalIndent(trace{o.NodeName, o.Prefix, o.FlannelCompat, o.Kubeconfig, o.KubeAPI}, "", "  ")
	if err != nil {
		return fmt.Errorf("note the Node's name: %w", err)
	}
	text = append(text, '\n')
	if have, err := os.ReadFile(o.tracePath()); err == nil && bytes.Equal(have, text) {
		return nil
	}
	if err := renameio.WriteFile(o.tracePath(), text, 0o644); err != nil {
		return fmt.Errorf("note the Node's name: %w", err)
	}
	return nil
}

// recall returns where this node's agent has written, as far as it is known: by
// what was noted and by flags, which win. It is nil when leases were in etcd.
func (o *options) recall() (*trace, error) {
	t := &trace{Flannel: o.FlannelCompat}
	text, err := os.ReadFile(o.tracePath())
	switch {
	case errors.Is(err, os.ErrNotExist) && o.Store != storeKube:
		return nil, nil
	case errors.Is(err, os.ErrNotExist):
		err = nil
	case err == nil:
		err = json.Unmarshal(text, t)
	}
	if err != nil {
		return nil, fmt.Errorf("which Node is this node's: %s: %w", o.tracePath(), err)
	}
	given := func(flag string) bool { return o.origin[flag] != "" && o.origin[flag] != "default" }
	if t.Node == "" || given("node-name") {
		t.Node = o.NodeName
	}
	if given("kube-annotation-prefix") {
		t.Prefix = o.Prefix
	}
	if o.Kubeconfig != "" || o.KubeAPI != "" {
		t.Kubeconfig, t.Server = o.Kubeconfig, o.KubeAPI
	}
	return t, nil
}

// options are those of the store on the Node API that wrote t. The network's
// configuration has no part in what is asked of it, and is gone with the pod.
func (t *trace) options() kube.Options {
	return kube.Options{Kubeconfig: t.Kubeconfig, Server: t.Server, Node: t.Node, Prefix: t.Prefix, Flannel: t.Flannel,
		NetConf: os.DevNull, Version: api.Version()}
}

// node takes our annotations and conditions off this node's Node. Without
// credentials for that, which is how it is on a host after `kubectl delete -f`,
// it says what is left and how to remove it, and that is no failure; when
// there are some and they do not do, it is one.
func (c *cleaner) node(ctx context.Context) error {
	if c.trace == nil {
		return nil
	}
	o := c.trace.options()
	s, err := kube.New(o)
	if errors.Is(err, kubeapi.ErrNoCredentials) {
		return c.sayLeft(o, "there are no credentials here to remove them; with kubelet's, it is --cleanup --kubeconfig=/etc/kubernetes/kubelet.conf, elsewhere:")
	}
	if err != nil {
		return errors.Join(err, c.sayLeft(o, "to remove them:"))
	}
	defer func() { _ = s.Close() }() // nothing is written through it
	gone, left, err := s.Withdraw(ctx, c.announced)
	switch {
	case errors.Is(err, kube.ErrNoNode):
		c.say("there is no Node %s any more, and nothing of weft on it", c.trace.Node)
	case err != nil:
		return errors.Join(err, c.sayLeft(o, "to remove them:"))
	case !gone.Empty():
		c.say("removed from Node %s: %s", c.trace.Node, gone)
	}
	if !left.Empty() {
		c.say("left: on Node %s, %s, which bear no mark of weft and may be a flanneld's; otherwise:", c.trace.Node, left)
		c.sayCommands(left)
	}
	return c.remove("note of this node's Node", c.o.tracePath())
}

// announced reports whether l is this node's as its agent has announced it.
func (c *cleaner) announced(l subnet.Lease) bool {
	for _, p := range l.Paths {
		if p.MAC == subnet.DeriveMAC(macNetwork, p.VNI, subnet.FamilyOf(p.Underlay), c.trace.Node) {
			return true
		}
	}
	return false
}

// sayLeft names what may be on the Node, and the way to get it off.
func (c *cleaner) sayLeft(o kube.Options, way string) error {
	left, err := kube.AllTraces(o)
	if err != nil {
		return err
	}
	c.say("left: on Node %s, annotations and conditions of weft, for which peers route to this node; %s", c.trace.Node, way)
	c.sayCommands(left)
	return nil
}

func (c *cleaner) sayCommands(t kube.Traces) {
	for _, line := range t.Kubectl(c.trace.Node) {
		c.say("  %s", line)
	}
}
