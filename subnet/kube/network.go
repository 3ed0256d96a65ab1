// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/wait"

	"weft.dev/weft/subnet"
)

// clusterLook is the pause between two looks at what the cluster says of its
// pod networks; with jitter up to half as long again. It is written once, when
// the cluster is made.
const clusterLook = 30 * time.Minute

// firstLooks is the first of the pauses, each twice the one before, after which a
// cluster is asked again that has refused to say something: an API server that
// starts has not read its Roles.
const firstLooks = time.Minute

// A resolver says which networks there are where the file does not.
type resolver struct {
	mu    sync.Mutex
	cidrs []netip.Prefix // podCIDRs of our Node as last seen
	said  cluster        // what the cluster said last
	due   time.Time      // when it is asked again; zero before the first time
	again time.Duration  // until due, of late

	text atomic.Pointer[string] // which networks there are, and who says so
}

// notYet is why the networks cannot be told yet: an error with a kind for waiting.
type notYet struct{ kind, text string }

func (n notYet) Error() string { return n.text }

// Networks says in one line which the pod networks are, and who says so. It is
// empty before Config has returned.
func (s *Store) Networks() string {
	if text := s.resolver.text.Load(); text != nil {
		return *text
	}
	return ""
}

// resolve completes cfg, as the file has it: of the families whose network is
// not given, those that our Node has podCIDRs of are there, with the network
// that the cluster's own configuration names, or else open. The error is notYet
// while our Node or the API has to be waited for, and else what is wrong with cfg.
func (s *Store) resolve(ctx context.Context, cfg subnet.Config) (subnet.Config, error) {
	r := &s.resolver
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.ContainsFunc(cfg.Networks, subnet.Network.Open) {
		if err := s.findCIDRs(ctx); err != nil {
			return cfg, err
		}
		if err := s.askCluster(ctx, cfg); err != nil {
			return cfg, err
		}
	}
	cfg, text := resolved(cfg, r.cidrs, r.said)
	if len(cfg.Networks) == 0 {
		err := fmt.Errorf("network configuration %s: EnableIPv4 or EnableIPv6 is false and the other family has no podCIDR: Node %s has %v, want one of a family that is not switched off", s.o.NetConf, s.o.Node, r.cidrs)
		if s.node.Load() == nil {
			r.cidrs = nil // nobody watches the Node yet: it is read again
		}
		return cfg, err
	}
	if text != s.Networks() {
		r.text.Store(&text)
		s.o.Log.Info("pod networks: " + text)
	}
	return cfg, nil
}

// findCIDRs brings the podCIDRs of our Node up to date: as Hold sees it, or
// read here before that. Those of a Node that is gone are kept.
func (s *Store) findCIDRs(ctx context.Context) error {
	node := s.node.Load()
	if node == nil {
		if s.resolver.cidrs != nil {
			return nil
		}
		var err error
		if node, err = s.readNode(ctx, s.o.Node); apierrors.IsNotFound(err) {
			node = nil
		} else if err != nil {
			kind, text := s.conn.Unreachable(err)
			return notYet{kind, text}
		}
	}
	cidrs, lacks := ownCIDRs(s.o.Node, node)
	if lacks == (notYet{}) {
		s.resolver.cidrs = cidrs
	} else if s.resolver.cidrs == nil {
		return lacks
	}
	return nil
}

// askCluster asks the cluster for its pod networks when that is due. Once it
// has answered, an API that does not is no news, nor is one that refuses what
// it has shown before: while it starts, it knows no rights.
func (s *Store) askCluster(ctx context.Context, cfg subnet.Config) error {
	r := &s.resolver
	if time.Now().Before(r.due) {
		return nil
	}
	said, err := s.readCluster(ctx, cfg.Networks)
	switch {
	case err == nil && (len(r.said.networks) == 0 || !said.refused):
		r.said = said
	case err != nil && r.due.IsZero():
		kind, text := s.conn.Unreachable(err)
		return notYet{kind, text}
	}
	if r.again = min(max(firstLooks, 2*r.again), clusterLook); !r.said.refused {
		r.again = clusterLook
	}
	r.due = time.Now().Add(wait.Jitter(r.again, 0.5))
	return nil
}

// resolved is cfg with a network for each open one that there are podCIDRs of,
// and where each network comes from. It is pure.
func resolved(cfg subnet.Config, cidrs []netip.Prefix, said cluster) (subnet.Config, string) {
	var networks []subnet.Network
	var text []string
	for _, n := range cfg.Networks {
		f := subnet.FamilyOf(n.Prefix.Addr())
		why := "configured"
		if n.Open() {
			at := slices.IndexFunc(cidrs, func(c netip.Prefix) bool { return subnet.FamilyOf(c.Addr()) == f })
			if at < 0 {
				continue
			}
			n, why = said.network(cidrs[at])
		}
		name := n.Prefix.String()
		if n.Open() {
			name = f.String() + " as leased"
		}
		networks, text = append(networks, n), append(text, fmt.Sprintf("%s (%s)", name, why))
	}
	cfg.Networks = networks
	return cfg, strings.Join(text, ", ")
}

// network returns the network that podCIDR c is in, and who says so, or why
// nobody can be believed.
func (k cluster) network(c netip.Prefix) (subnet.Network, string) {
	f := subnet.FamilyOf(c.Addr())
	open := subnet.OpenNetwork(f, c.Bits())
	for _, n := range k.networks {
		if subnet.FamilyOf(n.prefix.Addr()) != f {
			continue
		}
		if n.prefix.Bits() > c.Bits() || !n.prefix.Contains(c.Addr()) {
			return open, fmt.Sprintf("%s says %v, but this Node's podCIDR is %v", n.source, n.prefix, c)
		}
		known, err := subnet.NetworkOf(n.prefix, c.Bits())
		if err != nil {
			return open, fmt.Sprintf("%s says %v", n.source, err)
		}
		return known, n.source
	}
	return open, strings.Join(k.silent, "; ")
}

// asNotYet returns what err waits for, if it is that.
func asNotYet(err error) (notYet, bool) {
	var n notYet
	return n, errors.As(err, &n)
}
