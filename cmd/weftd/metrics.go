// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"weft.dev/weft/backend"
	"weft.dev/weft/cmd/internal/api"
)

// countersPatience bounds reading the guard's counters: a kernel that is busy
// with nftables must not hold up a status.
const countersPatience = time.Second

// A metric is one figure of a status.
type metric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(api.Status) float64
}

// collector makes all of weft's metrics from one status a scrape, so that they
// agree with each other.
type collector struct {
	a       *agent
	metrics []metric
	peers   *prometheus.Desc // counted, not listed
	refused *prometheus.Desc
	denied  *prometheus.Desc
	spoofed *prometheus.Desc
}

func (a *agent) collector() *collector {
	c := &collector{
		a:     a,
		peers: prometheus.NewDesc("weft_peers", "Nodes whose leases the store holds, without this one.", nil, nil),
		refused: prometheus.NewDesc("weft_guard_refused_total",
			"VXLAN packets that the ingress guard has refused since its table was made.", []string{"reason"}, nil),
	}
	c.denied = prometheus.NewDesc("weft_policy_denied_total",
		"Packets that network policies have denied since their table was made.", []string{"reason"}, nil)
	c.spoofed = prometheus.NewDesc("weft_spoofed_total",
		"Frames that pods may not send, which were dropped since the guard's table was made.", []string{"reason"}, nil)
	add := func(kind prometheus.ValueType, name, help string, read func(api.Status) float64) {
		c.metrics = append(c.metrics, metric{prometheus.NewDesc(name, help, nil, nil), kind, read})
	}
	flag := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	gauge := prometheus.GaugeValue
	add(gauge, "weft_ready", "1 when a pod started on this node would have its network.", func(s api.Status) float64 { return flag(s.Ready) })
	add(gauge, "weft_in_sync", "1 when the kernel holds what it should.", func(s api.Status) float64 { return flag(s.InSync) })
	add(gauge, "weft_pending_changes", "Changes that the last pass could not make.", func(s api.Status) float64 { return float64(len(s.Pending)) })
	add(gauge, "weft_problems", "Problems known now; `weft status` names them.", func(s api.Status) float64 { return float64(len(s.Problems)) })
	add(gauge, "weft_mass_removal_held", "Routes of peers that are kept although the store has lost them.", func(s api.Status) float64 {
		if s.Hold == nil {
			return 0
		}
		return float64(s.Hold.Routes)
	})
	add(prometheus.CounterValue, "weft_repairs_total", "Passes that undid what somebody else had changed in the kernel.", func(s api.Status) float64 { return float64(s.Repairs) })
	if a.o.enforces() {
		add(gauge, "weft_policy_in_force", "1 when the cluster's network policies, as last seen, are in force on this node.", func(s api.Status) float64 { return flag(s.Policy.InForce) })
		add(gauge, "weft_policy_policies", "Network policies in the cluster.", func(s api.Status) float64 { return float64(s.Policy.Policies) })
		add(gauge, "weft_spoof_guarded", "Links of this node's pods by which only their own addresses may send.", func(s api.Status) float64 { return float64(s.Policy.Guarded) })
		add(gauge, "weft_policy_rows", "Rows of the compiled table of this node.", func(s api.Status) float64 { return float64(s.Policy.Rows) })
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, m := range c.metrics {
		out <- m.desc
	}
	out <- c.peers
	out <- c.refused
	out <- c.denied
	out <- c.spoofed
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	s := c.a.brief()
	out <- prometheus.MustNewConstMetric(c.peers, prometheus.GaugeValue, float64(c.a.countPeers()))
	for _, m := range c.metrics {
		out <- prometheus.MustNewConstMetric(m.desc, m.kind, m.read(s))
	}
	c.count(out, c.refused, c.a.refused(context.Background()))
	if c.a.o.enforces() {
		c.count(out, c.denied, c.a.denied(context.Background()))
		c.count(out, c.spoofed, c.a.spoofed(context.Background()))
	}
}

// count collects what was dropped, by reason.
func (*collector) count(out chan<- prometheus.Metric, desc *prometheus.Desc, by map[string]uint64) {
	for _, reason := range slices.Sorted(maps.Keys(by)) {
		out <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(by[reason]), reason)
	}
}

// metrics are read when they are scraped.
func (a *agent) metrics() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(a.collector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), collectors.NewGoCollector())
	return reg
}

// refused returns what the guard has refused, by reason; nil while there is
// none, or the kernel does not tell.
func (a *agent) refused(ctx context.Context) map[string]uint64 {
	read := a.counters.Load()
	if read == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, countersPatience)
	defer cancel()
	counts, err := (*read)(ctx)
	if err != nil {
		a.log.WithField("err", err).Debug("the guard's counters could not be read")
		return nil
	}
	return counts
}

// countWith makes k the source of the guard's counters.
func (a *agent) countWith(k *backend.Kernel) {
	if a.o.filters() {
		read := counters(k.Refused)
		a.counters.Store(&read)
	}
}
