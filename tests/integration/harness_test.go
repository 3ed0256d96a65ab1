// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"bytes"
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

func TestMain(m *testing.M) {
	if code, ran := netlab.Stage(os.Args); ran {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// full reports whether to test at full length.
func full() bool { return os.Getenv("WEFT_FULL") == "1" }

// sample returns the full count under WEFT_FULL=1, else the short one.
func sample[T any](whole, short T) T {
	if full() {
		return whole
	}
	return short
}

// limit bounds one lab test. It is generous: a test that hangs, not one on a
// busy machine, should run into it.
func limit() time.Duration { return sample(20*time.Minute, 5*time.Minute) }

// inLab runs body in a lab with cfg's nodes, without agents. Outside, it
// starts the test's binary again as the control process of a new lab, running
// this test alone, and afterwards checks that nothing of the lab is left.
func inLab(t *testing.T, cfg netlab.Config, body func(ctx context.Context, t *testing.T, l *netlab.Lab)) {
	t.Helper()
	if !netlab.Inside() {
		launch(t)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit())
	defer cancel()
	cfg.Progress = logWriter{t}
	l, err := netlab.New(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.Dump(context.Background(), os.Stdout)
		}
	})
	body(ctx, t, l)
	for _, n := range l.Nodes() {
		if n.AgentPID() == 0 {
			continue
		}
		if err := n.CheckPrivileges(); err != nil {
			t.Error(err)
		}
	}
}

// launch runs the calling test in a lab and reports what it says.
func launch(t *testing.T) {
	t.Helper()
	t.Parallel()
	if err := netlab.Preflight("ip", "bridge", "ping"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	id := netlab.NewID()
	code, err := netlab.Launch{
		ID:     id,
		Args:   []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.timeout=0"},
		Stdout: &out, Stderr: &out,
	}.Run(t.Context())
	if err != nil {
		t.Error(err)
	}
	text := strings.TrimSpace(out.String())
	if code != 0 {
		t.Errorf("in the lab:\n%s", text)
	} else if !strings.Contains(text, "--- PASS: "+t.Name()) {
		t.Errorf("the lab ran no test:\n%s", text)
	} else {
		t.Log("in the lab:\n" + text)
	}
	gone(t, id, nil)
}

// logWriter writes the lab's progress to the test's log.
type logWriter struct{ t *testing.T }

func (w logWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

var _ io.Writer = logWriter{}

// up starts all agents and attaches pods, or ends the test.
func up(ctx context.Context, t *testing.T, l *netlab.Lab, podsPerNode int) {
	t.Helper()
	if err := l.Up(ctx, podsPerNode); err != nil {
		t.Fatal(err)
	}
}

// must ends the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until check returns nil. The deadline is for a test that
// would otherwise hang; it is no promise about how long anything takes.
func eventually(ctx context.Context, t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	start := time.Now()
	for {
		err := check()
		if err == nil {
			t.Logf("%s, after %s", what, time.Since(start).Round(time.Millisecond))
			return
		}
		if wait(ctx, 20*time.Millisecond) != nil {
			t.Fatalf("%s: not after %s: %v", what, time.Since(start).Round(time.Second), err)
		}
	}
}

// wait pauses, or returns ctx's error if that ends first.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pingEvery is the interval of the loss measurements: 100 requests a second.
const pingEvery = 10 * time.Millisecond

// A watch is a set of pingers that run while something is done to the lab.
type watch struct {
	pingers []*netlab.Pinger
	start   time.Time
}

// startWatch pings the first pod of every node from the first pod of the node
// before it, in all families.
func startWatch(ctx context.Context, t *testing.T, l *netlab.Lab) *watch {
	t.Helper()
	w := &watch{start: time.Now()}
	nodes := l.Nodes()
	for i, n := range nodes {
		from, to := n.Pods()[0], nodes[(i+1)%len(nodes)].Pods()[0]
		for _, f := range subnet.Families() {
			a, ok := to.Addr(f)
			if !ok {
				t.Fatalf("pod %s has no %s address", to, f)
			}
			p, err := from.StartPing(ctx, a, pingEvery)
			must(t, err)
			w.pingers = append(w.pingers, p)
		}
	}
	return w
}

// atLeast waits until every pinger has sent count requests.
func (w *watch) atLeast(ctx context.Context, t *testing.T, count int) {
	t.Helper()
	for _, p := range w.pingers {
		for p.Count().Sent < count {
			must(t, wait(ctx, 100*time.Millisecond))
		}
	}
}

// noneLost stops the pingers and fails the test if any request went without
// an answer.
func (w *watch) noneLost(t *testing.T) {
	t.Helper()
	sent, lost := 0, 0
	for _, p := range w.pingers {
		c := p.Stop()
		sent += c.Sent
		lost += c.Lost
		if c.Lost > 0 || c.Err != nil {
			t.Error(c)
		}
	}
	t.Logf("%d of %d pings lost in %s", lost, sent, time.Since(w.start).Round(time.Second))
	if sent == 0 {
		t.Error("nothing was sent")
	}
}

// restart starts the node's agent again and waits until it is ready.
func restart(ctx context.Context, t *testing.T, n *netlab.Node, args ...string) {
	t.Helper()
	must(t, n.StartAgent(ctx, args...))
	must(t, n.WaitReady(ctx))
}
