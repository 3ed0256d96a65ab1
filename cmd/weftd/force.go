// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"weft.dev/weft/cni-shim/ledger"
)

// bridge removes the bridge that our CNI configuration names, by the ioctls of
// brctl (linux/sockios.h): they remove bridges and nothing else.
func (c *cleaner) bridge() error {
	if _, err := net.InterfaceByName(bridge); err != nil {
		return nil // it has gone with the last pod, or never was
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("remove bridge %s: %w", bridge, err)
	}
	defer unix.Close(fd) // nothing was written
	down, err := unix.NewIfreq(bridge)
	if err != nil {
		return fmt.Errorf("remove bridge %s: %w", bridge, err)
	}
	down.SetUint16(0) // only a bridge that is down can be removed
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, down); err != nil {
		return fmt.Errorf("set bridge %s down: %w", bridge, err)
	}
	name, err := unix.NewIfreq(bridge)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCBRDELBR, name) // the name comes first in it
	}
	if err != nil {
		return fmt.Errorf("remove bridge %s: %w", bridge, err)
	}
	c.say("removed bridge %s", bridge)
	return nil
}

// ledger removes what the CNI plugin and host-local wrote down about the pods
// of our network. What is not theirs stays, and with it the directory.
func (c *cleaner) ledger() error {
	addresses := filepath.Join(ledger.DefaultAllocDir, presetFor(c.o.FlannelCompat).cniNetwork)
	return errors.Join(
		c.sweepDir("address allocations", addresses, isAllocation),
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
