// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"weft.dev/weft/cni-shim/ledger"
)

// ledger removes what the CNI plugin and host-local wrote down about the pods
// of our network. What is not theirs stays, and with it the directory.
func (c *cleaner) ledger() error {
	return errors.Join(
		c.sweepDir("address allocations", c.addresses, isAllocation),
		c.sweepDir("CNI state", filepath.Join(c.o.CNIDataDir, flightDir), func(string) bool { return true }),
		c.sweepDir("CNI state", c.o.CNIDataDir, func(name string) bool { _, ok := ledger.ParseKey(name); return ok }),
	)
}

// flightDir holds the locks of the plugin's calls (package ledger).
const flightDir = ".flight"

// isAllocation reports whether host-local makes files of that name (v1.9.1,
// backend/disk): one an address, one a range, and a lock.
func isAllocation(name string) bool {
	_, err := netip.ParseAddr(name)
	return err == nil || name == "lock" || strings.HasPrefix(name, "last_reserved_ip.")
}

// sweepDir removes those files of dir that ours names, and dir when it is
// empty then.
func (c *cleaner) sweepDir(what, dir string, ours func(string) bool) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", what, err)
	}
	var errs []error
	n := 0
	for _, e := range entries {
		if !e.Type().IsRegular() || !ours(e.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", what, err))
			continue
		}
		n++
	}
	if n > 0 {
		c.say("removed %s in %s: %d files", what, dir, n)
	}
	_ = os.Remove(dir) // what is left in it is not ours
	return errors.Join(errs...)
}
