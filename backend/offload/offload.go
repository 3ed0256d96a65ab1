// SPDX-License-Identifier: Apache-2.0

// Package offload reads and sets what a device does with packets in bulk
// (ethtool -k, -K), by the ioctl that every kernel since 2.6.29 has.
package offload

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Feature is one of the offloads that are a bit: the command that sets it; the
// one before it reads it (linux/ethtool.h).
type Feature uint32

// The features.
const (
	TSO Feature = 0x1f // ETHTOOL_STSO: TCP goes out in more than the MTU
	GSO Feature = 0x24 // ETHTOOL_SGSO: the same, cut by software
	GRO Feature = 0x2c // ETHTOOL_SGRO: what comes in is merged before it is looked at
)

// String is the word of ethtool -K.
func (f Feature) String() string {
	switch f {
	case TSO:
		return "tso"
	case GSO:
		return "gso"
	case GRO:
		return "gro"
	}
	return fmt.Sprintf("feature %#x", uint32(f))
}

// Get reports whether f is on at dev, in the network namespace of the socket
// fd, which may be of any kind. It fails with ENODEV if there is no such
// device.
func Get(fd int, dev string, f Feature) (bool, error) {
	v, err := call(fd, dev, uint32(f)-1, 0)
	if err != nil {
		return false, fmt.Errorf("read %s of %s: %w", f, dev, err)
	}
	return v != 0, nil
}

// Set switches f of dev on or off. It needs CAP_NET_ADMIN. The kernel may
// take it and keep it as it was, where the device can do nothing else.
func Set(fd int, dev string, f Feature, on bool) error {
	word, value := "off", uint32(0)
	if on {
		word, value = "on", 1
	}
	if _, err := call(fd, dev, uint32(f), value); err != nil {
		return fmt.Errorf("set %s %s at %s: %w", f, word, dev, err)
	}
	return nil
}

// call hands the kernel one struct ethtool_value and returns what it made of
// the value.
func call(fd int, dev string, cmd, value uint32) (uint32, error) {
	if len(dev) >= unix.IFNAMSIZ {
		return 0, unix.ENODEV
	}
	data := struct{ cmd, value uint32 }{cmd, value}
	req := struct { // struct ifreq, 40 bytes on 64-bit machines (linux/if.h)
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&data)}
	copy(req.name[:], dev)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return 0, errno
	}
	return data.value, nil
}
