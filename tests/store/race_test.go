// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"weft.dev/weft/subnet"
	"weft.dev/weft/subnet/etcd"
	"weft.dev/weft/tests/etcdtest"
)

// A race: racers nodes in processes processes want exactly racers subnets in
// each family at the same moment.
const (
	processes = 8
	racers    = 64
	raceConf  = `{"Network":"10.42.0.0/16","SubnetMin":"10.42.1.0","SubnetMax":"10.42.64.0",
		"IPv6Network":"fd42::/48","IPv6SubnetMin":"fd42:0:0:1::","IPv6SubnetMax":"fd42:0:0:40::"}`
)

// roundsVar sets the number of rounds for each server; 3 by default.
const roundsVar = "WEFT_RACE_ROUNDS"

// raceLimit is what the slowest in a hundred may take (p99).
const raceLimit = 10 * time.Second

// TestRace is flannel's T14, where its retries are dead code and a daemon
// exits: every racer gets a subnet of its own, in each family.
func TestRace(t *testing.T) {
	rounds := 3
	if text := os.Getenv(roundsVar); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			t.Fatalf("%s=%q: want a number of rounds, at least 1", roundsVar, text)
		}
		rounds = n
	}
	for _, kind := range etcdtest.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			srv := etcdtest.New(t, kind, etcdtest.Options{})
			var took []time.Duration
			for i := range rounds {
				t.Run(fmt.Sprint(i), func(t *testing.T) {
					took = append(took, race(newEnv(t, srv))...)
				})
			}
			if len(took) != rounds*racers {
				t.Fatalf("%d acquisitions, want %d", len(took), rounds*racers)
			}
			slices.Sort(took)
			p50, p99 := took[len(took)/2], took[len(took)*99/100]
			t.Logf("%d rounds of %d nodes: p50 %s p99 %s max %s", rounds, racers, p50, p99, took[len(took)-1])
			if p99 > raceLimit && os.Getenv(fullVar) == "1" { // a figure, of a machine that has nothing else to do
				t.Errorf("p99 %s, want at most %s", p99, raceLimit)
			}
		})
	}
}

// race runs one round and returns what each racer took.
func race(e *env) []time.Duration {
	children := make([]*child, processes)
	for i := range children {
		n := racers / processes
		children[i] = e.startChild(task{Role: raceRole, Endpoints: []string{e.srv.Endpoint}, Prefix: e.prefix, First: i * n, N: n})
	}
	for _, c := range children {
		c.await("ready")
	}
	e.put(e.prefix+startKey, "")

	var took []time.Duration
	held := make(map[netip.Prefix]string)
	for _, c := range children {
		for range racers / processes {
			var node, a, b string
			var ns int64
			if _, err := fmt.Sscan(c.await("granted"), &node, &a, &b, &ns); err != nil {
				e.Fatal(err)
			}
			took = append(took, time.Duration(ns))
			for _, p := range prefixes(a, b) {
				if other := held[p]; other != "" {
					e.Errorf("%s and %s both hold %s", node, other, p)
				}
				held[p] = node
			}
		}
	}
	if len(held) != 2*racers {
		e.Errorf("%d subnets held, want %d", len(held), 2*racers)
	}
	for _, x := range e.entries() {
		for _, p := range x.Paths {
			if held[p.Subnet] != x.Node {
				e.Errorf("%s is %s's in etcd and %s's by its grant", p.Subnet, x.Node, held[p.Subnet])
			}
		}
	}
	for _, c := range children {
		c.stop()
	}
	return took
}

// startKey below the prefix is created when a race starts.
const startKey = "/start"

func raceInChild(t task) {
	ctx := untilStdinCloses()
	cfg, err := subnet.ParseConfig([]byte(raceConf), "test", subnet.Defaults{})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	var all sync.WaitGroup
	start := make(chan struct{})
	for i := range t.N {
		s, err := etcd.New(etcd.Options{Endpoints: t.Endpoints, Prefix: t.Prefix})
		if err != nil {
			fmt.Println("error", err)
			return
		}
		all.Go(func() {
			<-start
			begin := time.Now()
			err := s.Hold(ctx, cfg, want(cfg, t.First+i+1), func(l subnet.Lease) {
				fmt.Println("granted", l.Node, l.Paths[0].Subnet, l.Paths[1].Subnet, time.Since(begin).Nanoseconds())
			})
			if ctx.Err() == nil {
				fmt.Println("error", err)
			}
		})
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: t.Endpoints, Logger: zap.NewNop()})
	if err != nil {
		fmt.Println("error", err)
		return
	}
	signal := c.Watch(ctx, t.Prefix+startKey, clientv3.WithCreatedNotify())
	<-signal
	fmt.Println("ready")
	<-signal
	close(start)
	all.Wait()
	fmt.Println("stopped")
}
