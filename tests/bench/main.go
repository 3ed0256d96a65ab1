// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"weft.dev/weft/tests/bench/crowd"
	"weft.dev/weft/tests/bench/data"
	"weft.dev/weft/tests/bench/measure"
	"weft.dev/weft/tests/netlab"
)

func main() {
	if code, ran := netlab.Stage(os.Args); ran {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	if data.Stage(os.Args) {
		return
	}
	if netlab.Inside() {
		os.Exit(inside(ctx))
	}
	if err := command(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintf(os.Stderr, "weft-bench: %v\n", err)
		}
		os.Exit(1)
	}
}

// requestEnv carries the request to the control process of a lab.
const requestEnv = "WEFT_BENCH_REQUEST"

// inside is the process inside the lab. Its figures go, as JSON, to standard
// output.
func inside(ctx context.Context) int {
	var err error
	switch {
	case data.Asked():
		err = data.Inside(ctx, os.Stdout, os.Stderr)
	case os.Getenv(kubeRequestEnv) != "":
		err = answer(ctx, kubeRequestEnv, kubeRequest.run)
	default:
		err = answer(ctx, requestEnv, request.run)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "weft-bench: %v\n", err)
		return 1
	}
	return 0
}

// answer runs the request in an environment variable.
func answer[Q, F any](ctx context.Context, env string, run func(Q, context.Context, io.Writer) (F, error)) error {
	var q Q
	if err := json.Unmarshal([]byte(os.Getenv(env)), &q); err != nil {
		return fmt.Errorf("%s: %w", env, err)
	}
	f, err := run(q, ctx, os.Stderr)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(f)
}

// options is the command line.
type options struct {
	only     string
	data     data.Request
	kube     kubeRequest
	sizes    []int
	starts   int
	changes  int
	idle     time.Duration
	binDir   string
	json     string
	markdown string
	profiles string
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	f := flag.NewFlagSet("weft-bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	sizes := f.String("sizes", "1000,5000,10000,20000", "numbers of peers, comma-separated")
	f.StringVar(&o.only, "only", "all", "what to measure: control, data, kube or all")
	f.IntVar(&o.data.Pairs, "pairs", 30, "pairs of samples for each ratio of the data path")
	f.Func("data-kinds", "kinds of traffic to measure, comma-separated: "+strings.Join(data.Kinds(), ", ")+" (default all)", func(v string) error {
		o.data.Kinds = strings.Split(v, ",")
		return data.CheckKinds(o.data.Kinds)
	})
	f.IntVar(&o.data.Peers, "data-peers", 10000, "peers of the larger network of the data path")
	f.IntVar(&o.kube.Nodes, "kube-nodes", 1000, "Nodes in the API server")
	f.DurationVar(&o.kube.Span, "kube-span", 2*time.Minute, "time that heartbeats are sent for, at each rate")
	f.IntVar(&o.kube.Changes, "kube-changes", 50, "isolated changes of a lease in the API")
	f.BoolVar(&o.kube.Gzip, "kube-gzip", false, "let the API server compress watches, as one of 1.37 does until they are renewed")
	f.IntVar(&o.starts, "starts", 5, "starts from nothing at each size")
	f.IntVar(&o.changes, "changes", 200, "isolated changes at each size, five a second; 0 for none")
	f.DurationVar(&o.idle, "idle", 30*time.Second, "time that idle CPU is counted for; 0 for none")
	f.StringVar(&o.binDir, "bin-dir", "", "directory with weftd (default: that of weft-bench)")
	f.StringVar(&o.profiles, "profiles", "", "write profiles of the agent into this directory; taking them costs time and memory that the figures then show")
	f.StringVar(&o.json, "json", "", "write the report to this file as JSON")
	f.StringVar(&o.markdown, "markdown", "", "write the report to this file")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	for _, s := range strings.Split(*sizes, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil || n < 100 || n+stormSize > crowd.Most {
			return o, fmt.Errorf("--sizes: %q is not a number from 100 to %d", s, crowd.Most-stormSize)
		}
		o.sizes = append(o.sizes, n)
	}
	if !slices.Contains([]string{"all", "control", "data", "kube"}, o.only) {
		return o, fmt.Errorf("--only %q: control, data, kube or all", o.only)
	}
	if o.kube.Nodes < 1 || o.kube.Nodes > crowd.Most || o.kube.Span < time.Second || o.kube.Changes < 1 {
		return o, fmt.Errorf("--kube-nodes %d, --kube-span %s, --kube-changes %d: 1 to %d, at least 1s and at least 1 are allowed", o.kube.Nodes, o.kube.Span, o.kube.Changes, crowd.Most)
	}
	o.kube.Rates = kubeRates(o.kube.Nodes)
	if o.data.Pairs < 1 || o.data.Peers < 2 || o.data.Peers > crowd.Most/4 {
		return o, fmt.Errorf("--pairs %d, --data-peers %d: at least 1, and 2 to %d are allowed", o.data.Pairs, o.data.Peers, crowd.Most/4)
	}
	if o.starts < 1 || o.changes < 0 || o.idle < 0 {
		return o, fmt.Errorf("--starts %d, --changes %d, --idle %s: at least 1, 0 and 0 are allowed", o.starts, o.changes, o.idle)
	}
	return o, nil
}

// stormSize is how many peers join within a second, at the largest size.
const stormSize = 1000

// requests are the labs to measure in.
func (o options) requests() []request {
	var out []request
	for _, dual := range []bool{true, false} {
		for i, n := range o.sizes {
			q := request{Peers: n, Dual: dual, Starts: o.starts, BinDir: o.binDir, Profiles: o.profiles}
			if dual {
				q.Changes, q.Idle = o.changes, o.idle
			}
			if dual && i == len(o.sizes)-1 {
				q.Storm = stormSize
			}
			out = append(out, q)
		}
	}
	return out
}

// command measures and reports.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	if err := netlab.Preflight("ip", "bridge", "nft"); err != nil {
		return err
	}
	if o.profiles != "" {
		if o.profiles, err = filepath.Abs(o.profiles); err != nil {
			return err
		}
	}
	if o.binDir, err = netlab.FindBin(o.binDir); err != nil {
		return err
	}
	if o.only == "all" || o.only == "kube" {
		o.kube.BinDir, o.kube.Profiles = o.binDir, o.profiles
		if err := o.kube.complete(); err != nil {
			return err
		}
	}
	rep := measure.Report{Machine: measure.ThisMachine(), Command: strings.TrimSpace("weft-bench " + strings.Join(args, " "))}
	version, err := exec.CommandContext(ctx, filepath.Join(o.binDir, "weftd"), "--version").Output()
	if err != nil {
		return fmt.Errorf("weftd --version: %w", err)
	}
	rep.Version = strings.TrimSpace(string(version))
	if rep.Rows, err = o.measure(ctx, stderr); err != nil {
		return err
	}
	failed := rep.Text(stdout)
	for name, write := range map[string]func(io.Writer) error{o.json: rep.JSON, o.markdown: func(w io.Writer) error { return document(w, rep) }} {
		if name != "" {
			failed = errors.Join(failed, toFile(name, write))
		}
	}
	return errors.Join(failed, missed(rep.Rows))
}

// measure takes all figures that are asked for, and judges them.
func (o options) measure(ctx context.Context, log io.Writer) (out []measure.Row, err error) {
	if o.only == "all" || o.only == "control" {
		var all []figures
		for _, q := range o.requests() {
			f, err := q.launch(ctx, log)
			if err != nil {
				return nil, err
			}
			all = append(all, f)
		}
		out = rows(all)
	}
	if o.only == "all" || o.only == "kube" {
		f, err := o.kube.launch(ctx, log)
		if err != nil {
			return nil, err
		}
		out = append(out, kubeRows(f)...)
	}
	if o.only == "all" || o.only == "data" {
		q := o.data
		q.BinDir = o.binDir
		path, err := q.Launch(ctx, log)
		if err != nil {
			return nil, err
		}
		out = append(out, path...)
	}
	return out, nil
}

func toFile(name string, write func(io.Writer) error) error {
	var b strings.Builder
	if err := write(&b); err != nil {
		return err
	}
	return writeFile(name, b.String())
}
