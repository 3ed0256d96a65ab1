// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// addBudget is what an ADD may cost over the delegate alone.
const addBudget = 15 * time.Millisecond

// BenchmarkAddOverhead measures what weft adds to an ADD: each pair runs one
// ADD through weft and one straight into bridge, with the same rendered
// configuration, the same node and a fresh pod, in turns. It reports the
// median of the differences with its 95% bootstrap interval, and fails unless
// the whole interval is inside the budget.
//
//	go test -run '^$' -bench AddOverhead ./cni-shim
func BenchmarkAddOverhead(b *testing.B) {
	p := buildPlugins(b)
	for _, lease := range []string{"v4", "dual"} {
		b.Run(lease, func(b *testing.B) { benchmarkAdd(b, p, lease) })
	}
}

func benchmarkAdd(b *testing.B, p plugins, lease string) {
	n, pod := newNode(b, p, lease), newNetns(b)
	n.conf["delegate"] = map[string]any{"isDefaultGateway": true, "ipMasq": false}
	conf, err := parseNetConf(encode(b, n.conf))
	if err != nil {
		b.Fatal(err)
	}
	rendered, err := render(conf, leaseOf(b, lease))
	if err != nil {
		b.Fatal(err)
	}
	// The first ADD makes the bridge; a pod stays so that its port keeps it up.
	n.ok(b, call{command: "ADD", id: "first", ifName: "eth0", netns: newNetns(b).path})
	weft := call{id: "c1", ifName: "eth0", netns: pod.path}
	bridge := call{id: "c1", ifName: "eth0", netns: pod.path, plugin: "bridge", raw: rendered}

	var with, alone, over []time.Duration
	for i := 0; i < max(b.N, 40); i++ {
		var w, a time.Duration
		if i%2 == 0 {
			w, a = n.timeAdd(b, weft), n.timeAdd(b, bridge)
		} else {
			a, w = n.timeAdd(b, bridge), n.timeAdd(b, weft)
		}
		with, alone, over = append(with, w), append(alone, a), append(over, w-a)
	}
	low, high := bootstrap(over)
	b.ReportMetric(0, "ns/op") // the time of the whole loop says nothing
	b.ReportMetric(ms(quantile(over, 0.5)), "over-p50-ms")
	b.ReportMetric(ms(low), "over-low-ms")
	b.ReportMetric(ms(high), "over-high-ms")
	fmt.Printf("# %d pairs, ms: weft min %.2f p25 %.2f p50 %.2f; bridge min %.2f p25 %.2f p50 %.2f; over p50 %.2f [%.2f, %.2f]\n", len(over),
		ms(quantile(with, 0)), ms(quantile(with, 0.25)), ms(quantile(with, 0.5)),
		ms(quantile(alone, 0)), ms(quantile(alone, 0.25)), ms(quantile(alone, 0.5)),
		ms(quantile(over, 0.5)), ms(low), ms(high))
	if high > addBudget {
		b.Errorf("an ADD costs %v over bridge alone, 95%% interval up to %v; want at most %v", quantile(over, 0.5), high, addBudget)
	}
}

// timeAdd times one ADD, from starting the process to its end, and undoes it.
func (n *node) timeAdd(b *testing.B, c call) time.Duration {
	b.Helper()
	c.command = "ADD"
	cmd := n.command(b, c)
	var took time.Duration
	var out []byte
	var err error
	n.do(func() {
		start := time.Now()
		out, err = cmd.Output()
		took = time.Since(start)
	})
	if err != nil {
		b.Fatalf("ADD: %v: %s", err, out)
	}
	c.command = "DEL"
	n.ok(b, c)
	return took
}

// bootstrap returns the 95% interval of the median by the percentile method.
func bootstrap(sample []time.Duration) (low, high time.Duration) {
	const rounds = 5000
	rng := rand.New(rand.NewPCG(1, 2))
	medians := make([]time.Duration, rounds)
	again := make([]time.Duration, len(sample))
	for i := range medians {
		for j := range again {
			again[j] = sample[rng.IntN(len(sample))]
		}
		medians[i] = quantile(again, 0.5)
	}
	return quantile(medians, 0.025), quantile(medians, 0.975)
}

// quantile returns the sample's q-quantile, by the nearest rank.
func quantile(sample []time.Duration, q float64) time.Duration {
	sorted := slices.SortedFunc(slices.Values(sample), cmp.Compare[time.Duration])
	return sorted[int(q*float64(len(sorted)-1)+0.5)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
