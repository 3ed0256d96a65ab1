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
	var q request
	var err error
	if data.Asked() {
		err = data.Inside(ctx, os.Stdout, os.Stderr)
	} else if err = json.Unmarshal([]byte(os.Getenv(requestEnv)), &q); err == nil {
		var f figures
		if f, err = q.run(ctx, os.Stderr); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(f)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "weft-bench: %v\n", err)
		return 1
	}
	return 0
}

// options is the command line.
type options struct {
	only     string
	data     data.Request
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
	f.StringVar(&o.only, "only", "all", "what to measure: control, data or all")
	f.IntVar(&o.data.Pairs, "pairs", 30, "pairs of samples for each ratio of the data path")
	f.Func("data-kinds", "kinds of traffic to measure, comma-separated: "+strings.Join(data.Kinds(), ", ")+" (default all)", func(v string) error {
		o.data.Kinds = strings.Split(v, ",")
		return data.CheckKinds(o.data.Kinds)
	})
	f.IntVar(&o.data.Peers, "data-peers", 10000, "peers of the larger network of the data path")
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
	if o.only != "all" && o.only != "control" && o.only != "data" {
		return o, fmt.Errorf("--only %q: control, data or all", o.only)
	}
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
	return failed
}

// measure takes all figures that are asked for, and judges them.
func (o options) measure(ctx context.Context, log io.Writer) (out []measure.Row, err error) {
	if o.only != "data" {
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
	if o.only != "control" {
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
