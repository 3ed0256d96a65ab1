// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"net"
	"slices"
	"time"

	"weft.dev/weft/cni-shim/ledger"
	"weft.dev/weft/policy"
)

// FromLedger lists the pods that are in l: those whose ADD has come so far
// that they have addresses, and whose DEL has not begun, of this boot.
func FromLedger(l *ledger.Ledger) Pods {
	return func(ctx context.Context) ([]policy.Registered, error) {
		boot, err := ledger.BootID("")
		if err != nil {
			return nil, err
		}
		records, err := l.Records(ctx)
		if err != nil {
			return nil, err
		}
		return registered(records, boot), nil
	}
}

// links are those of one attachment; none for what an older plugin has written
// down, or a plugin whose interface is no Ethernet.
func links(s ledger.Stamp) []policy.Link {
	mac, err := net.ParseMAC(s.MAC)
	if err != nil {
		return nil
	}
	var out []policy.Link
	for _, port := range s.Ports {
		out = append(out, policy.Link{Port: port, MAC: mac})
	}
	return out
}

// registered turns records into pods. The attachments of one sandbox are one
// pod with the addresses of all; in what order sandboxes of one pod were made
// is told by their stamps.
func registered(records []ledger.Record, boot string) []policy.Registered {
	type sandbox struct {
		policy.Registered
		written time.Time
	}
	var all []*sandbox
	by := map[string]*sandbox{}
	for _, r := range records {
		if !r.Stamped || r.Stamp.Phase != ledger.Added || r.Stamp.Boot != boot {
			continue
		}
		s := by[r.Key.ContainerID]
		if s == nil {
			s = &sandbox{Registered: policy.Registered{Container: r.Key.ContainerID}}
			by[r.Key.ContainerID] = s
			all = append(all, s)
		}
		if p := r.Stamp.Pod; p != nil {
			s.Namespace, s.Name, s.UID = p.Namespace, p.Name, p.UID
		}
		s.Addrs = append(s.Addrs, r.Stamp.Addrs...)
		s.Links = append(s.Links, links(r.Stamp)...)
		if r.Stamp.Time.After(s.written) {
			s.written = r.Stamp.Time
		}
	}
	slices.SortStableFunc(all, func(a, b *sandbox) int { return a.written.Compare(b.written) })
	out := make([]policy.Registered, 0, len(all))
	for _, s := range all {
		out = append(out, s.Registered)
	}
	return out
}
