// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"fmt"
	"net/netip"
	"slices"
)

// maxSources bounds the further sources of one lease. A node has few
// addresses; each one costs every peer some elements of its ingress guard, so
// that a lease must not bring thousands.
const maxSources = 16

// checkSources reports why addrs cannot be the further sources of a lease.
func checkSources(addrs []netip.Addr) error {
	if len(addrs) > maxSources {
		return fmt.Errorf("%d source addresses: want at most %d", len(addrs), maxSources)
	}
	for _, a := range addrs {
		if err := checkUnderlay(a); err != nil {
			return fmt.Errorf("source: %w", err)
		}
	}
	return nil
}

// normalSources returns addrs in order and each once; nil when there is none.
// It may reorder addrs.
func normalSources(addrs []netip.Addr) []netip.Addr {
	if len(addrs) == 0 {
		return nil
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return slices.Compact(addrs)
}

// sourceTexts renders addrs as a codec publishes them.
func sourceTexts(addrs []netip.Addr) ([]string, error) {
	addrs = normalSources(slices.Clone(addrs))
	if err := checkSources(addrs); err != nil {
		return nil, err
	}
	var texts []string
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	return texts, nil
}

// parseSources is the inverse of sourceTexts; it takes them in any order.
func parseSources(texts []string) ([]netip.Addr, error) {
	if len(texts) > maxSources {
		return nil, fmt.Errorf("%d source addresses: want at most %d", len(texts), maxSources)
	}
	var addrs []netip.Addr
	for _, text := range texts {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("source %q: want an IP address", clip(text))
		}
		addrs = append(addrs, a)
	}
	addrs = normalSources(addrs)
	return addrs, checkSources(addrs)
}
