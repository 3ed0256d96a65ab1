// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/tests/netlab"
)

// roomForOthers is a network whose agents lease none of 10.42.200.0/24 and up:
// these are for peers that scripts make by hand.
const roomForOthers = `{"Network":"10.42.0.0/16","SubnetMax":"10.42.199.0","IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}`

// store is faults of etcd, of the way to it, and of what is in it.
func store() campaign {
	const reconnect = 10 * time.Second
	const retake = 75 * time.Second // weftd tries once a minute
	return campaign{
		Name: "store", What: "etcd, the way to it, and what is in it", Nodes: 3, Pods: 1, Conf: roomForOthers,
		Faults: []fault{
			{ID: "T4", Name: "etcd killed and started again", Flannel: "0 of 200 pings lost", Limit: reconnect, Run: etcdAway},
			{ID: "F8", Name: "packets to and from etcd vanish", Flannel: "not measured", Limit: 30 * time.Second, Seeds: 3, Run: blackHole},
			{ID: "T5", Name: "a junk key", Flannel: "all nodes lose all routes, for good (B1)", Run: junkKey},
			{ID: "T8", Name: "peers removed while the agent is down", Flannel: "stale routes for ever (#2554)", Limit: 5 * time.Second, Run: staleAtStart},
			{ID: "T9", Name: "own lease deleted", Flannel: "the daemon exits with status 0", Loses: true, Run: ownLeaseDeleted},
			{ID: "F9", Name: "own lease taken by another node", Flannel: "overwrites the new owner (#1289, #805, #813, #1129; B4)", Loses: true, Limit: retake, Seeds: 2, Run: ownLeaseTaken},
			{ID: "T13", Name: "agent started while etcd is down", Flannel: "passes", Limit: reconnect, Run: startedBeforeEtcd},
			{ID: "T15", Name: "a peer's MAC changes inside a compaction gap", Flannel: "not followed on any node (B2); a hot loop that fills disks (#2470)", Limit: reconnect, Run: compaction},
			{ID: "T16", Name: "the prefix of all leases is deleted", Flannel: "all agents exit with status 0", Loses: true, Limit: reconnect, Run: wiped},
			{ID: "F15", Name: "a cloned machine with this node's name", Flannel: "shares the lease", Limit: reconnect, Run: cloned},
			{ID: "F34", Name: "a bad configuration is pushed", Flannel: "read once, at start", Run: badConfig},
		},
	}
}

// lease is a peer made by hand, as flannel v0.28 would write it.
func lease(ip, mac string) string {
	return `{"PublicIP":"` + ip + `","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"` + mac + `"}}`
}

func (s *scene) key(k string) string { return s.Prefix() + "/subnets/" + k }

func (s *scene) put(ctx context.Context, key, value string) error {
	_, err := s.Client().Put(ctx, key, value)
	return err
}

func (s *scene) remove(ctx context.Context, key string, opts ...clientv3.OpOption) error {
	_, err := s.Client().Delete(ctx, key, opts...)
	return err
}

// keyOf returns the key below subnets/ of the node's lease, and its value.
func (s *scene) keyOf(ctx context.Context, n *netlab.Node) (key, value string, err error) {
	leases, err := s.Leases(ctx)
	if err != nil {
		return "", "", err
	}
	for k, v := range leases {
		if strings.Contains(v, `"Node":"`+n.Name()+`"`) {
			return k, v, nil
		}
	}
	return "", "", fmt.Errorf("no lease of %s in etcd", n)
}

// everywhere returns nil if each of the nodes has, or has not, a route to the
// prefix.
func everywhere(ctx context.Context, nodes []*netlab.Node, prefix string, want bool) error {
	for _, n := range nodes {
		is, err := stateOf(ctx, n)
		if err != nil {
			return err
		}
		if got := is.has("route " + prefix); got != want {
			return fmt.Errorf("%s has a route to %s: %t, want %t", n, prefix, got, want)
		}
	}
	return nil
}

// followed checks that what is written to etcd reaches the nodes: the clock
// stops when a new peer has arrived everywhere.
func (s *scene) followed(ctx context.Context, nodes ...*netlab.Node) error {
	const key, prefix = "10.42.230.0-24", "10.42.230.0/24"
	if err := s.put(ctx, s.key(key), lease("192.168.77.230", "0a:00:00:00:02:30")); err != nil {
		return err
	}
	if err := s.until(ctx, "a new peer's route", func() error { return everywhere(ctx, nodes, prefix, true) }); err != nil {
		return err
	}
	if err := s.remove(ctx, s.key(key)); err != nil {
		return err
	}
	return s.heals(ctx)
}

func etcdAway(ctx context.Context, s *scene) error {
	length := time.Second
	if s.full {
		length = 15 * time.Second
	}
	err := s.outage(func() error {
		if err := s.StopEtcd(); err != nil {
			return err
		}
		if err := netlab.Pause(ctx, length); err != nil {
			return err
		}
		return s.StartEtcd(ctx)
	})
	if err != nil {
		return err
	}
	return s.followed(ctx, s.Nodes()...)
}

// cut keeps a node from etcd by a rule, until mend.
func (s *scene) cut(ctx context.Context, n *netlab.Node, verdict string) (mend func() error, err error) {
	err = s.nft(ctx, n.Place, `table inet cut { chain out { type filter hook output priority 0; tcp dport 2379 `+verdict+`; } ; chain in { type filter hook input priority 0; tcp sport 2379 drop; } ; }`)
	return func() error { return s.nft(ctx, n.Place, "delete table inet cut") }, err
}

// blackHole drops all packets between a node and etcd: the connection looks
// alive for as long as nobody asks.
func blackHole(ctx context.Context, s *scene) error {
	n := s.node()
	length := 3 * time.Second
	if s.full {
		length = 40 * time.Second
	}
	s.notef("%s for %s", n, length)
	err := s.outage(func() error {
		mend, err := s.cut(ctx, n, "drop")
		if err != nil {
			return err
		}
		if err := netlab.Pause(ctx, length); err != nil {
			return err
		}
		return mend()
	})
	if err != nil {
		return err
	}
	return s.followed(ctx, n)
}

// junkKey puts one key that is no lease, where flannel's watch sees it.
func junkKey(ctx context.Context, s *scene) error {
	keys := []string{"/subnets/garbage", "/subnets-backup/x", "/subnets/10.42.300.0-24", "/subnets/10.42.231.0-24", "/subnets/"}
	values := []string{"x", "", "{", "null", "[]", `{"PublicIP":7}`, "\x00\xff\xfe"}
	key, value := s.Prefix()+pick(s, keys), pick(s, values)
	s.notef("%s %q", key, value)
	if err := s.inject(func() error { return s.put(ctx, key, value) }); err != nil {
		return err
	}
	// What comes after it has to be seen, and nothing else may change.
	if err := s.followed(ctx, s.Nodes()...); err != nil {
		return err
	}
	return s.remove(ctx, key)
}

// staleAtStart takes peers out of the store while an agent is dead. After its
// start nothing of them may be left in the kernel.
func staleAtStart(ctx context.Context, s *scene) error {
	n := s.node()
	s.notef("%s", n)
	const peers = 3
	for i := range peers {
		err := s.put(ctx, s.key(fmt.Sprintf("10.42.22%d.0-24", i)), lease(fmt.Sprintf("192.168.77.22%d", i), fmt.Sprintf("0a:00:00:00:02:2%d", i)))
		if err != nil {
			return err
		}
	}
	if err := s.wait(ctx, "the peers", func() error { return everywhere(ctx, s.Nodes(), "10.42.222.0/24", true) }); err != nil {
		return err
	}
	return s.restarts(ctx, n, (*netlab.Node).KillAgent, func() error {
		for i := range peers {
			if err := s.remove(ctx, s.key(fmt.Sprintf("10.42.22%d.0-24", i))); err != nil {
				return err
			}
		}
		return nil
	})
}

// ownLeaseDeleted deletes a live node's lease. The agent takes the same
// subnets back.
func ownLeaseDeleted(ctx context.Context, s *scene) error {
	n := s.node()
	key, _, err := s.keyOf(ctx, n)
	if err != nil {
		return err
	}
	s.notef("%s: %s", n, key)
	if err := s.inject(func() error { return s.remove(ctx, s.key(key)) }); err != nil {
		return err
	}
	return s.leasesBack(ctx, map[string]string{n.Name(): key})
}

// leasesBack waits until nodes hold the keys that they held.
func (s *scene) leasesBack(ctx context.Context, keys map[string]string) error {
	return s.until(ctx, "the same subnets, and the kernel as before", func() error {
		leases, err := s.Leases(ctx)
		if err != nil {
			return err
		}
		for name, key := range keys {
			if !strings.Contains(leases[key], `"Node":"`+name+`"`) {
				return fmt.Errorf("%s of %s is %q", key, name, leases[key])
			}
		}
		return errors.Join(s.agents(ctx), s.asBefore(ctx))
	})
}

// ownLeaseTaken overwrites a live node's lease with another node's. The agent
// must not write it back: it keeps running, says who holds it, and takes its
// subnets again when they are free.
func ownLeaseTaken(ctx context.Context, s *scene) error {
	n := s.node()
	key, _, err := s.keyOf(ctx, n)
	if err != nil {
		return err
	}
	s.notef("%s: %s", n, key)
	const theirs = `{"PublicIP":"192.168.77.240","PublicIPv6":"fd77::240","BackendType":"vxlan",` +
		`"BackendData":{"VNI":1,"VtepMAC":"0a:00:00:00:02:40"},"BackendV6Data":{"VNI":1,"VtepMAC":"0a:00:00:00:02:40"},` +
		`"Weft":{"Node":"thief","Instance":"00112233445566778899aabbccddeeff"}}`
	pid := n.AgentPID()
	err = s.outage(func() error {
		if err := s.put(ctx, s.key(key), theirs); err != nil {
			return err
		}
		if err := s.wait(ctx, "a problem that names the other holder", func() error { return s.problem(ctx, n, "thief") }); err != nil {
			return err
		}
		if err := netlab.Pause(ctx, time.Second); err != nil {
			return err
		}
		leases, err := s.Leases(ctx)
		if err != nil {
			return err
		}
		if leases[key] != theirs {
			return fmt.Errorf("the new owner's lease %s was overwritten with %q", key, leases[key])
		}
		return s.remove(ctx, s.key(key))
	})
	if err != nil {
		return err
	}
	if n.AgentPID() != pid {
		return fmt.Errorf("weftd on %s did not keep running", n)
	}
	if !s.full { // a fresh agent does not wait for the end of the minute
		if err := n.KillAgent(); err != nil {
			return err
		}
		if err := n.StartAgent(ctx); err != nil {
			return err
		}
	}
	return s.leasesBack(ctx, map[string]string{n.Name(): key})
}

func startedBeforeEtcd(ctx context.Context, s *scene) error {
	n := s.node()
	length := time.Second
	if s.full {
		length = 20 * time.Second
	}
	s.notef("%s, %s", n, length)
	err := s.outage(func() error {
		if err := s.StopEtcd(); err != nil {
			return err
		}
		if err := n.KillAgent(); err != nil {
			return err
		}
		if err := n.StartAgent(ctx); err != nil {
			return err
		}
		if err := netlab.Pause(ctx, length); err != nil {
			return err
		}
		return s.StartEtcd(ctx)
	})
	if err != nil {
		return err
	}
	return s.until(ctx, "agents ready and the kernel as before", func() error {
		return errors.Join(s.agents(ctx), s.asBefore(ctx))
	})
}

// compaction changes a peer while a node is cut off from etcd, and compacts
// the history away that would have told it.
func compaction(ctx context.Context, s *scene) error {
	n := s.node()
	s.notef("%s", n)
	const key, oldMAC, newMAC = "10.42.231.0-24", "0a:00:00:00:02:31", "0a:00:00:00:99:31"
	if err := s.put(ctx, s.key(key), lease("192.168.77.231", oldMAC)); err != nil {
		return err
	}
	sees := func(mac string) func() error {
		return func() error {
			is, err := stateOf(ctx, n)
			if err == nil && !(is.has("fdb "+mac) && is.has("neigh 10.42.231.0 lladdr "+mac)) {
				err = fmt.Errorf("%s does not frame to %s", n, mac)
			}
			return err
		}
	}
	if err := s.wait(ctx, "the peer", sees(oldMAC)); err != nil {
		return err
	}
	err := s.outage(func() error {
		mend, err := s.cut(ctx, n, "reject with tcp reset")
		if err != nil {
			return err
		}
		if err := s.put(ctx, s.key(key), lease("192.168.77.231", newMAC)); err != nil {
			return err
		}
		put, err := s.Client().Put(ctx, s.Prefix()+"/history", fmt.Sprint(s.seed))
		if err != nil {
			return err
		}
		if _, err := s.Client().Compact(ctx, put.Header.Revision); err != nil {
			return err
		}
		if err := netlab.Pause(ctx, s.chance(time.Second)); err != nil {
			return err
		}
		return mend()
	})
	if err != nil {
		return err
	}
	if err := s.until(ctx, "the peer's new MAC", sees(newMAC)); err != nil {
		return err
	}
	if err := s.remove(ctx, s.key(key)); err != nil {
		return err
	}
	return s.heals(ctx)
}

// wiped deletes all leases. With three nodes that is too few for the hold of
// a mass removal: every agent takes its own back.
func wiped(ctx context.Context, s *scene) error {
	keys := map[string]string{}
	for _, n := range s.Nodes() {
		key, _, err := s.keyOf(ctx, n)
		if err != nil {
			return err
		}
		keys[n.Name()] = key
	}
	if err := s.inject(func() error { return s.remove(ctx, s.key(""), clientv3.WithPrefix()) }); err != nil {
		return err
	}
	return s.leasesBack(ctx, keys)
}

// cloned starts a machine that was copied from a node: same name, another
// instance. It must be refused, and the node must not notice.
func cloned(ctx context.Context, s *scene) error {
	original := s.node()
	clone, err := s.AddNode(ctx)
	if err != nil {
		return err
	}
	s.notef("a clone of %s", original)
	err = s.inject(func() error { return clone.StartAgent(ctx, "--node-name="+original.Name()) })
	if err != nil {
		return err
	}
	if err := s.until(ctx, "a clone that is refused by name", func() error {
		return errors.Join(s.problem(ctx, clone, original.Name()), s.asBefore(ctx))
	}); err != nil {
		return err
	}
	if err := netlab.Pause(ctx, time.Second); err != nil { // it must not win later
		return err
	}
	if code, _, err := clone.HTTP(ctx, "/readyz"); err == nil && code == 200 {
		return errors.New("the clone is ready")
	}
	if err := s.asBefore(ctx); err != nil {
		return err
	}
	return s.RemoveNode(clone)
}

// badConfig pushes configurations that no agent can follow. The last good one
// stays in force.
func badConfig(ctx context.Context, s *scene) error {
	conf := pick(s, []string{"", "{", `{"Network":"10.42.0.0/99"}`, `{"Network":"10.42.0.0/16","Backend":{"Type":"cloud"}}`, "null"})
	s.notef("%q", conf)
	if err := s.inject(func() error { return s.put(ctx, s.Prefix()+"/config", conf) }); err != nil {
		return err
	}
	if err := s.followed(ctx, s.Nodes()...); err != nil {
		return err
	}
	return s.SetNetwork(ctx, s.Config().Network)
}

// junk is what should not be in the store.
func junk() campaign {
	return campaign{
		Name: "junk", What: "junk and hostile leases", Nodes: 3, Pods: 1, Conf: roomForOthers,
		Faults: []fault{
			{ID: "T17", Name: "junk and hostile leases", Flannel: "9 of 36 entries of live peers lost", Tells: true, Limit: 10 * time.Second, Run: junkLeases},
		},
	}
}

// suspended is a machine that sleeps for longer than its lease lasts.
func suspended() campaign {
	return campaign{
		Name: "suspend", What: "an agent that sleeps for longer than its lease lasts", Nodes: 3, Pods: 1, Conf: roomForOthers,
		Args: []string{"--lease-ttl=4s", "--lease-renew-margin=2s"},
		Faults: []fault{
			{ID: "F16", Name: "agent suspended beyond its lease's time", Flannel: "overwrites whoever has the subnet now (#1289; B4)", Loses: true, Limit: 5 * time.Second, Seeds: 3, Run: asleep},
		},
	}
}

func asleep(ctx context.Context, s *scene) error {
	n := s.node()
	key, _, err := s.keyOf(ctx, n)
	if err != nil {
		return err
	}
	s.notef("%s: %s", n, key)
	err = s.outage(func() error {
		if err := n.SignalAgent(syscall.SIGSTOP); err != nil {
			return err
		}
		err := s.wait(ctx, "the lease's end", func() error {
			leases, err := s.Leases(ctx)
			if err == nil && leases[key] != "" {
				err = fmt.Errorf("%s is still there", key)
			}
			return err
		})
		return errors.Join(err, n.SignalAgent(syscall.SIGCONT))
	})
	if err != nil {
		return err
	}
	return s.leasesBack(ctx, map[string]string{n.Name(): key})
}
