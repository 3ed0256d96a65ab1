// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/internal/waiting"
	"weft.dev/weft/subnet"
)

// configMap is a mounted ConfigMap: a link to a link to a directory, which
// kubelet replaces as a whole by moving a link (pkg/volume/util/atomic_writer.go).
type configMap struct {
	testing.TB
	dir string
	n   int
}

func (c *configMap) path() string { return filepath.Join(c.dir, "net-conf.json") }

// write makes text the content; "" is a ConfigMap without the key.
func (c *configMap) write(text string) {
	c.Helper()
	c.n++
	data := filepath.Join(c.dir, "..data"+strings.Repeat("x", c.n))
	must(c, os.Mkdir(data, 0o755))
	if text != "" {
		must(c, os.WriteFile(filepath.Join(data, "net-conf.json"), []byte(text), 0o644))
	}
	tmp := filepath.Join(c.dir, "..data_tmp")
	must(c, os.Symlink(data, tmp))
	must(c, os.Rename(tmp, filepath.Join(c.dir, "..data")))
	if c.n == 1 {
		must(c, os.Symlink("..data/net-conf.json", c.path()))
	}
}

// offline returns a store whose API does not exist.
func offline(t *testing.T, netConf string) *Store {
	t.Helper()
	s, err := New(Options{Server: "http://127.0.0.1:1", Node: "n1", NetConf: netConf, PollEvery: time.Millisecond})
	must(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("not within a minute: %s", what)
		}
		waiting.Pause(t.Context(), time.Millisecond)
	}
}

// The configuration is waited for, and its absence or its error named.
func TestConfigWaits(t *testing.T) {
	cm := &configMap{TB: t, dir: t.TempDir()}
	s := offline(t, cm.path())
	got := make(chan subnet.Config, 1)
	go func() {
		cfg, err := s.Config(t.Context())
		if err == nil {
			got <- cfg
		}
	}()
	says := func(words ...string) {
		t.Helper()
		eventually(t, "Reason says "+strings.Join(words, ", "), func() bool {
			for _, w := range words {
				if !strings.Contains(s.Reason(), w) {
					return false
				}
			}
			return true
		})
	}
	says(cm.path(), "no such file", "--net-conf")
	cm.write(`{"EnableIPv4":false,"EnableIPv6":false}`)
	says(cm.path(), "want Network, IPv6Network or both", "neither EnableIPv4 nor EnableIPv6 false")
	cm.write(`{"Backend":{"Type":"vxlan"}}`)
	says("waiting for the Kubernetes API")
	cm.write(`{"EnableIPv6":false,"Network":"10.244.0.0/16"}`)
	cfg := <-got
	if n, ok := cfg.Network(subnet.IPv4); !ok || n.Prefix.String() != "10.244.0.0/16" || s.Reason() != "" {
		t.Errorf("configuration %+v, reason %q", cfg, s.Reason())
	}
}

// What changes is told once; what is wrong keeps the last good one.
func TestConfigIsFollowed(t *testing.T) {
	cm := &configMap{TB: t, dir: t.TempDir()}
	cm.write(`{"EnableIPv6":false,"Network":"10.244.0.0/16"}`)
	s := offline(t, cm.path())
	running, err := s.Config(t.Context())
	must(t, err)
	type told struct {
		cfg subnet.Config
		err error
	}
	news := make(chan told)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- s.WatchConfig(ctx, running, func(cfg subnet.Config, err error) { news <- told{cfg, err} })
	}()
	expect := func(mtu int, words ...string) {
		t.Helper()
		got := <-news
		if got.cfg.Backend.MTU != mtu || (got.err != nil) != (len(words) > 0) {
			t.Errorf("told %+v, %v; want MTU %d, an error with %v", got.cfg, got.err, mtu, words)
		}
		for _, w := range words {
			if got.err != nil && !strings.Contains(got.err.Error(), w) {
				t.Errorf("told %v, which does not say %q", got.err, w)
			}
		}
	}
	cm.write(`{"EnableIPv6":false,"Network":"10.244.0.0/16","Backend":{"MTU":1400}}`)
	expect(1400)
	cm.write(`{"EnableIPv6":false,"Network":"10.244.0.0/16","Backend":{"MTU":1400} }`) // the same in other words
	cm.write(`{"EnableIPv6":false,"Network":"10.244.0.0/16","Backend":{"MTU":"x"}}`)
	expect(1400, cm.path(), "Backend.MTU")
	cm.write("")
	expect(1400, "no such file")
	cm.write(strings.Repeat(" ", maxNetConf+1))
	expect(1400, "at most")
	cm.write(`{"EnableIPv6":false,"Network":"10.244.0.0/16","Backend":{"MTU":1400}}`)
	expect(1400)
	cm.write(`{"EnableIPv6":false,"Network":"10.244.0.0/16"}`)
	expect(0)
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	s.Close()
	if err := s.WatchConfig(t.Context(), running, nil); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{NetConf: "/x"}, "NODE_NAME"},
		{Options{Node: "n"}, "--net-conf"},
		{Options{Node: "n", NetConf: "/x", Prefix: "no domain"}, "annotation prefix"},
		{Options{Node: "n", NetConf: "/x", Prefix: "weft.dev"}, "outside a pod want --kubeconfig"},
		{Options{Node: "n", NetConf: "/x", Kubeconfig: "/nowhere/config"}, "/nowhere/config"},
		{Options{Node: "n", NetConf: "/x", CallTimeout: -1}, "more than 0"},
	} {
		s, err := New(c.o)
		if err == nil {
			s.Close()
			t.Errorf("%+v: no error, want one with %q", c.o, c.want)
		} else if !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want it to say %q", c.o, err, c.want)
		}
	}
}

// While the API is out of reach everything waits, says so, and ends when asked.
func TestAPIOutOfReach(t *testing.T) {
	s := offline(t, "/nowhere")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	cfg := config(t, dualConf)
	go func() { ended <- s.Hold(ctx, cfg, dualWant(), func(subnet.Lease) { t.Error("granted") }) }()
	go func() { ended <- s.Watch(ctx, cfg, func(subnet.Snapshot) { t.Error("a snapshot") }) }()
	eventually(t, "Reason names the API", func() bool {
		return strings.Contains(s.Reason(), "waiting for the Kubernetes API at http://127.0.0.1:1") && strings.Contains(s.Reason(), "connection refused")
	})
	cancel()
	for range 2 {
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("does not end")
		}
	}
}
