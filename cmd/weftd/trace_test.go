// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/kube/apitest"
)

// announcedBy are the annotations under prefix of the agent on node.
func announcedBy(t *testing.T, prefix, node string) map[string]string {
	t.Helper()
	l := leaseOf(node, "", "192.0.2.1", "10.244.1.0/24")
	l.Paths[0].MAC = subnet.DeriveMAC(macNetwork, l.Paths[0].VNI, subnet.IPv4, node)
	l.Sources = append(l.Sources, l.Paths[0].Underlay.Next())
	encode := subnet.EncodeNode
	if prefix == subnet.FlannelAnnotationPrefix {
		encode = subnet.EncodeAnnotations
	}
	ann, err := encode(prefix, l)
	if err != nil {
		t.Fatal(err)
	}
	return ann
}

// A nodeCase is a cleanup of Node n1.
type nodeCase struct {
	name    string
	args    string // of the agent
	prefix  string
	writer  string // of which node the MAC in the annotations is
	prepare func(*apitest.Server, *trace)
	left    []string // annotations, beside others'
	conds   string   // conditions left
	says    []string
	fails   string
	again   bool // there is something left to do for another cleanup
}

// What weft's agent has written on its Node goes, and nothing of anybody else;
// where that is not possible, what is left is named with the way to remove it.
func TestCleanupOfTheNode(t *testing.T) {
	const flannels = subnet.FlannelAnnotationPrefix
	const ours, theirs, all = "n1", "elsewhere", "NetworkUnavailable Other OverlayDegraded Ready"
	for _, c := range []nodeCase{
		{name: "weft's", prefix: subnet.Domain, writer: ours, conds: "Other Ready", says: []string{"removed from Node n1: annotations weft.dev/backend-data", "conditions NetworkUnavailable OverlayDegraded"}},
		{name: "flannel's names, weft's mark", args: "--flannel-compat -kube-subnet-mgr", prefix: flannels, writer: ours, conds: "Other Ready",
			says: []string{"removed from Node n1", flannels + "/public-ip", "weft.dev/sources"}},
		{name: "a flanneld's by now", args: "--flannel-compat -kube-subnet-mgr", prefix: flannels, writer: theirs, conds: "Other Ready",
			left: []string{flannels + "/kube-subnet-manager", flannels + "/backend-type", flannels + "/backend-data", flannels + "/public-ip"},
			says: []string{"may be a flanneld's", "kubectl annotate node n1 " + flannels + "/backend-data-"}},
		{name: "another network's condition", prefix: subnet.Domain, writer: ours, prepare: func(s *apitest.Server, _ *trace) { s.Condition("n1", "NetworkUnavailable", "CalicoIsUp") },
			conds: "NetworkUnavailable Other Ready"},
		{name: "the Node is gone", prefix: subnet.Domain, writer: ours, prepare: func(s *apitest.Server, _ *trace) { s.Delete("n1") }, says: []string{"there is no Node n1 any more"}},
		{name: "refused", prefix: subnet.Domain, writer: ours, prepare: func(s *apitest.Server, _ *trace) { s.Refuse("no right") },
			fails: "no right", says: []string{"left: on Node n1", "kubectl annotate node n1 weft.dev/backend-data-", `kubectl patch node n1 --subresource=status -p '{"status":{"conditions":[{"type":"NetworkUnavailable","$patch":"delete"}`}, conds: all, again: true},
		{name: "no API", prefix: subnet.Domain, writer: ours, prepare: func(_ *apitest.Server, tr *trace) { tr.Server = "http://127.0.0.1:1" },
			fails: "connection refused", says: []string{"left: on Node n1", "kubectl annotate node n1"}, conds: all, again: true},
		{name: "no credentials", prefix: subnet.Domain, writer: ours, prepare: func(_ *apitest.Server, tr *trace) { tr.Server = "" },
			says: []string{"left: on Node n1", "--kubeconfig=/etc/kubernetes/kubelet.conf", "kubectl annotate node n1", "weft.dev/subnets-", "OverlayDegraded"}, conds: all, again: true},
		{name: "credentials that are gone", prefix: subnet.Domain, writer: ours, prepare: func(_ *apitest.Server, tr *trace) { tr.Kubeconfig = "/nowhere/config" },
			fails: "/nowhere/config", says: []string{"kubectl annotate node n1"}, conds: all, again: true},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t) })
	}
}

func (c nodeCase) run(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	api := apitest.New()
	srv := httptest.NewServer(api)
	defer srv.Close()
	ann := announcedBy(t, c.prefix, c.writer)
	ann["other"] = "x"
	api.Create("n1", ann, "10.244.1.0/24")
	for kind, reason := range map[string]string{"Ready": "KubeletReady", "NetworkUnavailable": "WeftIsUp", "OverlayDegraded": "OverlayHasProblems", "Other": "WeftIsUp"} {
		api.Condition("n1", kind, reason)
	}
	o, tr := onTheHost(t, c.args)
	tr.Server = srv.URL
	if c.prepare != nil {
		c.prepare(api, tr)
	}
	before := annotationsOf(api)
	var out bytes.Buffer
	err := (&cleaner{o: o, out: &out, trace: tr}).node(t.Context())
	if (err != nil) != (c.fails != "") || err != nil && !strings.Contains(err.Error(), c.fails) {
		t.Errorf("%v, want %q", err, c.fails)
	}
	for _, want := range c.says {
		if !strings.Contains(out.String(), want) {
			t.Errorf("does not say %q:\n%s", want, out.String())
		}
	}
	if _, err := os.Stat(o.tracePath()); errors.Is(err, os.ErrNotExist) == c.again {
		t.Errorf("the note is there: %v", err)
	}
	c.look(t, api, before)
}

// onTheHost is a cleanup where nothing is known but what the agent has noted.
func onTheHost(t *testing.T, args string) (*options, *trace) {
	t.Helper()
	agent := parse(t, nil, append(strings.Fields(args), "--state-dir="+t.TempDir(), "--store=kube")...)
	if err := agent.remember(); err != nil {
		t.Fatal(err)
	}
	o, err := parseOptions([]string{"--state-dir=" + agent.StateDir, "--cleanup"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := o.recall()
	if err != nil || tr == nil || tr.Node != "n1" {
		t.Fatalf("recalls %+v, %v", tr, err)
	}
	return o, tr
}

func annotationsOf(api *apitest.Server) []string {
	if n := api.Node("n1"); n != nil {
		return slices.Sorted(maps.Keys(n.Annotations))
	}
	return nil
}

// look compares the Node with what is to be left of it.
func (c nodeCase) look(t *testing.T, api *apitest.Server, before []string) {
	want := before
	if !c.again && before != nil {
		want = slices.Sorted(slices.Values(append(slices.Clone(c.left), "other")))
	}
	if got := annotationsOf(api); !slices.Equal(got, want) {
		t.Errorf("left annotations %v, want %v", got, want)
	}
	var conds []string
	if n := api.Node("n1"); n != nil {
		for _, nc := range n.Status.Conditions {
			conds = append(conds, string(nc.Type))
		}
	}
	slices.Sort(conds)
	if got := strings.Join(conds, " "); got != c.conds {
		t.Errorf("left conditions %s, want %s", got, c.conds)
	}
}

// With etcd there is no Node to look for, unless an agent once wrote on one.
func TestCleanupKnowsOfNoNode(t *testing.T) {
	o := parse(t, nil, "--state-dir="+t.TempDir(), "--cleanup")
	if err := o.remember(); err != nil {
		t.Fatal(err)
	}
	if tr, err := o.recall(); tr != nil || err != nil {
		t.Errorf("recalls %+v, %v", tr, err)
	}
	o = parse(t, nil, "--state-dir="+o.StateDir, "--cleanup", "--kubeconfig=/k")
	if tr, err := o.recall(); err != nil || tr == nil || tr.Node != "n1" || tr.Kubeconfig != "/k" {
		t.Errorf("without a note: %+v, %v", tr, err)
	}
	if err := os.WriteFile(filepath.Join(o.StateDir, "node.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := o.recall(); err == nil || !strings.Contains(err.Error(), "node.json") {
		t.Errorf("a torn note: %v", err)
	}
}
