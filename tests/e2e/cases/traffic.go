// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/netlab"
)

// probeEvery is the pause between two pings, and two messages of a stream.
const probeEvery = 10 * time.Millisecond

// traffic is what runs while something happens to the cluster: from each pod
// to that of the next node, in every family, 100 pings a second and a TCP
// connection.
type traffic struct {
	sites   []site
	pingers []*netlab.Pinger
	streams []*netlab.Stream
}

// startTraffic starts it between the pods of the nodes that keep says, all if
// it is nil.
func startTraffic(ctx context.Context, c *cluster.Cluster, keep func(*cluster.Node) bool) (*traffic, error) {
	sites, err := web(ctx, c)
	if err != nil {
		return nil, err
	}
	t := &traffic{sites: sites}
	var used []site
	for _, s := range sites {
		if keep == nil || keep(s.node) {
			used = append(used, s)
		}
	}
	for i, from := range used {
		to := used[(i+1)%len(used)]
		for _, ip := range to.IPs {
			p, err := from.StartPing(ctx, ip, probeEvery)
			if err != nil {
				return nil, errors.Join(err, t.end())
			}
			t.pingers = append(t.pingers, p)
			s, err := from.StartStream(ctx, to.Place, ip, probeEvery)
			if err != nil {
				return nil, errors.Join(err, t.end())
			}
			t.streams = append(t.streams, s)
		}
	}
	return t, nil
}

// end stops it and returns what was lost, nil if nothing was.
func (t *traffic) end() error {
	var errs []error
	for _, p := range t.pingers {
		if n := p.Stop(); n.Lost > 0 || n.Twice > 0 || n.Err != nil || n.Sent == 0 {
			errs = append(errs, errors.New(n.String()))
		}
	}
	for _, s := range t.streams {
		if n := s.Stop(); n.Err != nil || n.Answered == 0 {
			errs = append(errs, errors.New(n.String()))
		}
	}
	closeAll(t.sites)
	return errors.Join(errs...)
}

// sums says how much it was.
func (t *traffic) sums() string {
	pings, answered, longest := 0, uint64(0), time.Duration(0)
	for _, p := range t.pingers {
		pings += p.Count().Sent
	}
	for _, s := range t.streams {
		n := s.Count()
		answered, longest = answered+n.Answered, max(longest, n.Longest)
	}
	return fmt.Sprintf("%d pings, %d streams with %d messages, the slowest after %.0f ms", pings, len(t.streams), answered, longest.Seconds()*1000)
}

// underTraffic runs a fault while traffic passes that must lose nothing.
func underTraffic(ctx context.Context, c *cluster.Cluster, keep func(*cluster.Node) bool, fault func(context.Context) error) error {
	t, err := startTraffic(ctx, c, keep)
	if err != nil {
		return err
	}
	begin := time.Now()
	err = fault(ctx)
	took := time.Since(begin)
	if lost := t.end(); lost != nil {
		err = errors.Join(err, fmt.Errorf("traffic: %s", strings.ReplaceAll(lost.Error(), "\n", "; ")))
	}
	c.Progress("  %.0f s, %s", took.Seconds(), t.sums())
	return err
}
