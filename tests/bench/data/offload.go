// SPDX-License-Identifier: Apache-2.0

package data

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"weft.dev/weft/tests/netlab"
)

// Commands of SIOCETHTOOL that set one bit (linux/ethtool.h).
const (
	setTSO = 0x0000001f // ETHTOOL_STSO
	setGSO = 0x00000024 // ETHTOOL_SGSO
	setGRO = 0x0000002c // ETHTOOL_SGRO
)

// segmented makes the end of a wire carry packets of at most its MTU, which
// the other end puts together again, as network cards without segmentation of
// tunnels do; or else whatever size the sender has, as veth does by itself.
func segmented(p *netlab.Place, dev string, on bool) error {
	value := func(b bool) uint32 {
		if b {
			return 1
		}
		return 0
	}
	return p.Do(func() error {
		for _, s := range []struct{ cmd, value uint32 }{{setTSO, value(!on)}, {setGSO, value(!on)}, {setGRO, value(on)}} {
			if err := ethtool(dev, s.cmd, s.value); err != nil {
				return fmt.Errorf("offloads of %s on %s: %w", dev, p.Name(), err)
			}
		}
		return nil
	})
}

func ethtool(dev string, cmd, value uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	data := struct{ cmd, value uint32 }{cmd, value} // struct ethtool_value
	req := struct {                                 // struct ifreq, 40 bytes on 64-bit machines
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&data)}
	copy(req.name[:unix.IFNAMSIZ-1], dev)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return errno
	}
	return nil
}
