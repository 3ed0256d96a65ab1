// SPDX-License-Identifier: Apache-2.0

package data

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"weft.dev/weft/tests/bench/crowd"
	"weft.dev/weft/tests/bench/measure"
	"weft.dev/weft/tests/netlab"
)

// requestEnv carries the request to the control process of the lab.
const requestEnv = "WEFT_BENCH_DATA"

// Request is what to measure.
type Request struct {
	Pairs  int      // of each ratio
	Peers  int      // of the larger network, at least 2
	Kinds  []string // of traffic; none: all
	BinDir string
}

// Kinds are the kinds of traffic that can be measured.
func Kinds() []string { return []string{stream, pingers, packets, connect} }

// CheckKinds says which of them is none.
func CheckKinds(kinds []string) error {
	for _, k := range kinds {
		if !slices.Contains(Kinds(), k) {
			return fmt.Errorf("%q: want some of %s", k, strings.Join(Kinds(), ", "))
		}
	}
	return nil
}

// Launch measures in a lab of its own and returns the rows of a report.
func (q Request) Launch(ctx context.Context, log io.Writer) (rows []measure.Row, err error) {
	err = netlab.Launch{Stderr: log}.Ask(ctx, requestEnv, q, &rows)
	if err == nil && len(rows) == 0 {
		err = errors.New("nothing was measured")
	}
	if err != nil {
		return nil, fmt.Errorf("data path: %w", err)
	}
	return rows, nil
}

// Asked reports whether this control process is one that Launch started.
func Asked() bool { return os.Getenv(requestEnv) != "" }

// Inside measures in the lab that this process controls and writes the rows
// to out as JSON.
func Inside(ctx context.Context, out, log io.Writer) error {
	var q Request
	if err := json.Unmarshal([]byte(os.Getenv(requestEnv)), &q); err != nil {
		return fmt.Errorf("%s: %w", requestEnv, err)
	}
	l, err := netlab.New(ctx, netlab.Config{Nodes: 2 * pairs, Network: crowd.Dual, BinDir: q.BinDir, Progress: log, AgentArgs: []string{"--iface=" + wireDev}})
	if err != nil {
		return err
	}
	all, err := q.measure(ctx, l)
	if err != nil {
		l.Dump(ctx, log)
		return err
	}
	return json.NewEncoder(out).Encode(q.rows(all))
}

// measure builds the scene and runs the trials.
func (q Request) measure(ctx context.Context, l *netlab.Lab) (all []samples, err error) {
	s, err := q.build(ctx, l)
	if err != nil {
		return nil, err
	}
	st, err := s.staff()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, st.dismiss()) }()
	if err := st.polices(ctx); err != nil {
		return nil, err
	}
	for _, t := range q.trials() {
		got, err := st.run(ctx, t)
		if err != nil {
			return all, err
		}
		l.Progress("%s: %d rounds", t, q.Pairs)
		all = append(all, got)
	}
	return all, nil
}
