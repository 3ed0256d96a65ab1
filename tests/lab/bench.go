// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"weft.dev/weft/subnet"
	"weft.dev/weft/tests/netlab"
)

// iperfRetry is for as long as a server may need to start, or to get over
// the measurement before.
const iperfRetry = 5 * time.Second

// measure compares one TCP stream between two pods on different nodes with
// one between these nodes. Rounds are interleaved, because the machine is not
// equally fast at all times.
func (r *Report) measure(ctx context.Context, l *netlab.Lab, o options) error {
	nodes := l.Nodes()
	if len(nodes) < 2 || len(nodes[0].Pods()) == 0 || len(nodes[1].Pods()) == 0 {
		return nil
	}
	a, b := nodes[0].Pods()[0], nodes[1].Pods()[0]
	for _, p := range []*netlab.Place{nodes[1].Place, b.Place} {
		stop, err := serveIperf(p)
		if err != nil {
			return err
		}
		defer stop()
	}
	for _, f := range subnet.Families() {
		if _, ok := b.Addr(f); ok {
			r.Throughput = append(r.Throughput, Throughput{
				From: a.Name(), To: b.Name(), Family: familyNumber(f), Seconds: o.IperfSeconds,
				Pod: []float64{}, Host: []float64{}, Ratios: []float64{},
			})
		}
	}
	for range o.Rounds {
		for i := range r.Throughput {
			t := &r.Throughput[i]
			f := subnet.Family(t.Family)
			if err := t.round(ctx, nodes[0].Place, underlay(nodes[1], f), &t.Host); err != nil {
				return err
			}
			addr, _ := b.Addr(f)
			if err := t.round(ctx, a.Place, addr, &t.Pod); err != nil {
				return err
			}
		}
	}
	for i := range r.Throughput {
		t := &r.Throughput[i]
		for j := range t.Host {
			t.Ratios = append(t.Ratios, t.Pod[j]/t.Host[j])
		}
		t.Ratio = median(t.Ratios)
	}
	return nil
}

// underlay returns the node's address of family f, or the zero Addr.
func underlay(n *netlab.Node, f subnet.Family) netip.Addr {
	for _, a := range n.Underlay() {
		if subnet.FamilyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}

// round makes one measurement and appends it, or does nothing when there is
// no such address.
func (t *Throughput) round(ctx context.Context, from *netlab.Place, to netip.Addr, out *[]float64) error {
	if !to.IsValid() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(t.Seconds)*time.Second+2*iperfRetry)
	defer cancel()
	give := time.Now().Add(iperfRetry)
	for {
		mbits, err := iperf(ctx, from, to, t.Seconds)
		if err == nil {
			*out = append(*out, mbits)
			return nil
		}
		busy := strings.Contains(err.Error(), "busy") || strings.Contains(err.Error(), "refused")
		if !busy || time.Now().After(give) {
			return err
		}
		timer := time.NewTimer(50 * time.Millisecond)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// iperf measures one TCP stream and returns Mbit/s as received.
func iperf(ctx context.Context, from *netlab.Place, to netip.Addr, seconds int) (float64, error) {
	out, err := from.Run(ctx, "iperf3", "-c", to.String(), "-t", strconv.Itoa(seconds), "-J")
	var doc struct {
		Error string `json:"error"`
		End   struct {
			Received struct {
				BitsPerSecond float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if e := json.Unmarshal([]byte(out), &doc); e != nil {
		return 0, errors.Join(err, fmt.Errorf("iperf3 from %s to %s: %w", from.Name(), to, e))
	}
	if doc.Error != "" {
		return 0, fmt.Errorf("iperf3 from %s to %s: %s", from.Name(), to, doc.Error)
	}
	if err != nil {
		return 0, err
	}
	if doc.End.Received.BitsPerSecond <= 0 {
		return 0, fmt.Errorf("iperf3 from %s to %s: nothing was received", from.Name(), to)
	}
	return doc.End.Received.BitsPerSecond / 1e6, nil
}

// serveIperf runs an iperf3 server in the place until stop is called.
func serveIperf(p *netlab.Place) (stop func(), err error) {
	cmd := exec.Command("iperf3", "-s")
	if err := p.Start(cmd); err != nil {
		return nil, err
	}
	return func() {
		cmd.Process.Kill()
		cmd.Wait() // reports the kill
	}, nil
}
