// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/kube/apitest"
)

// fixture is an API server, and our Node's store on it.
type fixture struct {
	*testing.T
	api *apitest.Server
	srv *httptest.Server
	s   *Store
	cfg subnet.Config
}

// newCluster has no Nodes yet. Ours is n1.
func newCluster(t *testing.T, conf string, edit ...func(*Options)) *fixture {
	t.Helper()
	c := &fixture{T: t, api: apitest.New(), cfg: config(t, conf)}
	c.srv = httptest.NewServer(c.api)
	netConf := filepath.Join(t.TempDir(), "net-conf.json")
	must(t, os.WriteFile(netConf, []byte(conf), 0o600))
	o := Options{Server: c.srv.URL, Node: "n1", NetConf: netConf, CallTimeout: 5 * time.Second, PollEvery: 10 * time.Millisecond}
	for _, f := range edit {
		f(&o)
	}
	var err error
	c.s, err = New(o)
	must(t, err)
	t.Cleanup(func() {
		c.s.Close()
		c.srv.CloseClientConnections()
		c.srv.Close()
	})
	return c
}

// run runs f until the test ends, which is the only thing that may end it.
func (c *fixture) run(f func(ctx context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	c.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			c.Errorf("ended with %v", err)
		}
	})
}

// hold holds n1's lease; what is granted comes through the channel, rendered.
func (c *fixture) hold() <-chan string {
	granted := make(chan string, 100)
	want := dualWant()
	want.Paths = want.Paths[:len(c.cfg.Networks)]
	c.run(func(ctx context.Context) error {
		return c.s.Hold(ctx, c.cfg, want, func(l subnet.Lease) { granted <- leaseText(l) })
	})
	return granted
}

func leaseText(l subnet.Lease) string {
	var out []string
	for _, p := range l.Paths {
		out = append(out, p.Subnet.String()+"@"+p.Underlay.String())
	}
	return strings.Join(out, " ")
}

func (c *fixture) granted(from <-chan string, want string) {
	c.Helper()
	select {
	case got := <-from:
		if got != want {
			c.Fatalf("granted %s, want %s", got, want)
		}
	case <-time.After(10 * time.Second):
		c.Fatalf("not granted: %s; waits: %s", want, c.s.Reason())
	}
}

// watched are the snapshots of a Watch under way.
type watched struct {
	*fixture
	mu    sync.Mutex
	texts []string
}

func (c *fixture) watch() *watched {
	w := &watched{fixture: c}
	c.run(func(ctx context.Context) error {
		return c.s.Watch(ctx, c.cfg, func(s subnet.Snapshot) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.texts = append(w.texts, snapText(s))
		})
	})
	return w
}

// snapText renders a snapshot in one line.
func snapText(s subnet.Snapshot) string {
	var out []string
	for l := range s.Leases.All() {
		out = append(out, l.Node+"="+leaseText(*l))
	}
	for _, p := range s.Problems {
		out = append(out, p.Kind+":"+p.Object)
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func (w *watched) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.texts)
}

func (w *watched) shows(want string) {
	w.Helper()
	last := ""
	defer func() {
		if w.Failed() {
			w.Logf("snapshots %q; waits: %q", w.all(), w.s.Reason())
		}
	}()
	eventually(w.T, "a snapshot "+want, func() bool {
		if all := w.all(); len(all) > 0 {
			last = all[len(all)-1]
		}
		return last == want
	})
}

func (c *fixture) says(words ...string) {
	c.Helper()
	eventually(c.T, "Reason says "+strings.Join(words, ", "), func() bool {
		for _, w := range words {
			if !strings.Contains(c.s.Reason(), w) {
				return false
			}
		}
		return true
	})
}

// told waits for an Event about our Node.
func (c *fixture) told(reason string, words ...string) {
	c.Helper()
	eventually(c.T, "an Event "+reason+" with "+strings.Join(words, ", "), func() bool {
		for _, e := range c.api.Events() {
			ok := e.Reason == reason && e.InvolvedObject.Kind == "Node" && e.InvolvedObject.Name == "n1"
			for _, w := range words {
				ok = ok && strings.Contains(e.Message, w)
			}
			if ok {
				return true
			}
		}
		return false
	})
}

// annotated waits until our Node has these annotations, and others' kept.
func (c *fixture) annotated(want map[string]string) {
	c.Helper()
	eventually(c.T, "our annotations", func() bool {
		n := c.api.Node("n1")
		return n != nil && maps.Equal(n.Annotations, want)
	})
}

const (
	v4Conf = `{"Network":"10.244.0.0/16"}`
	v4At   = "@192.0.2.1"
	v6At   = "@2001:db8::1"
)
