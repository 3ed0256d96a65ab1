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
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"weft.dev/weft/tests/netlab"
)

// tools are the programs that the campaigns use.
func tools() []string { return []string{"ip", "bridge", "ping", "nft"} }

// options is the command line.
type options struct {
	request
	campaigns string
	parallel  int
	json      string
	markdown  string
}

// oneAtATime keeps what several labs write from being mixed within a line.
type oneAtATime struct {
	mu sync.Mutex
	to io.Writer
}

func (l *oneAtATime) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.to.Write(b)
}

// command is weft-faults outside of a lab.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o := options{}
	f := flag.NewFlagSet("weft-faults", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.campaigns, "campaigns", "", "comma-separated; default all")
	f.StringVar(&o.Only, "only", "", "inject no fault but the ones with this ID, e.g. T6")
	f.IntVar(&o.Seeds, "seeds", 4, "injections of each fault")
	f.IntVar(&o.Deaf, "audits", 3, "injections of each drift with deaf agents")
	f.Uint64Var(&o.First, "first-seed", 1, "seed of the first injection; the same seeds break the same things")
	f.BoolVar(&o.Full, "full", true, "slow faults too, and outages at full length")
	f.StringVar(&o.BinDir, "bin-dir", "", "directory with weftd, weft and cni/ (default: that of weft-faults)")
	f.IntVar(&o.parallel, "parallel", 3, "campaigns at the same time")
	f.StringVar(&o.json, "json", "", "write all injections to this file")
	f.StringVar(&o.markdown, "markdown", "", "write the report to this file")
	if err := f.Parse(args); err != nil {
		return 2
	}
	err := o.all(ctx, stdout, &oneAtATime{to: stderr})
	if err != nil {
		fmt.Fprintf(stderr, "weft-faults: %v\n", err)
		return 1
	}
	return 0
}

// all runs the campaigns and reports.
func (o options) all(ctx context.Context, stdout, log io.Writer) error {
	if err := netlab.Preflight(tools()...); err != nil {
		return err
	}
	var err error
	if o.BinDir, err = netlab.FindBin(o.BinDir); err != nil {
		return err
	}
	chosen := campaigns()
	if o.campaigns != "" {
		chosen = nil
		for _, name := range strings.Split(o.campaigns, ",") {
			c, err := campaignNamed(name)
			if err != nil {
				return err
			}
			chosen = append(chosen, c)
		}
	}
	start := time.Now()
	done, failed := o.launchAll(ctx, chosen, log)
	rep := newReport(chosen, done, o, time.Since(start))
	if o.json != "" {
		b, err := json.MarshalIndent(done, "", " ")
		if err == nil {
			err = os.WriteFile(o.json, append(b, '\n'), 0o644)
		}
		failed = errors.Join(failed, err)
	}
	rep.text(stdout)
	if o.markdown != "" && failed == nil {
		failed = writeFile(o.markdown, rep.markdown())
	}
	return errors.Join(failed, rep.err())
}

// launchAll runs campaigns side by side. A campaign that could not be run does
// not stop the others.
func (o options) launchAll(ctx context.Context, chosen []campaign, log io.Writer) ([]result, error) {
	var g errgroup.Group
	g.SetLimit(max(o.parallel, 1))
	all, errs := make([][]result, len(chosen)), make([]error, len(chosen))
	for i, c := range chosen {
		q := o.request
		q.Campaign = c.Name
		if !c.asks(q) {
			continue
		}
		g.Go(func() error {
			all[i], errs[i] = q.launch(ctx, log)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var flat []result
	for _, rs := range all {
		flat = append(flat, rs...)
	}
	return flat, errors.Join(errs...)
}

// asks reports whether a request concerns any fault of the campaign.
func (c campaign) asks(q request) bool {
	for _, f := range c.Faults {
		if q.wanted(f) {
			return true
		}
	}
	return false
}
