// SPDX-License-Identifier: Apache-2.0

package data

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"weft.dev/weft/backend/offload"
	"weft.dev/weft/tests/netlab"
)

// segmented makes the end of a wire carry packets of at most its MTU, which
// the other end puts together again, as network cards without segmentation of
// tunnels do; or else whatever size the sender has, as veth does by itself.
// With merge off, the other end leaves them as they are, as cards do whose
// driver cannot tell that a tunnel's checksum is right.
func segmented(p *netlab.Place, dev string, on, merge bool) error {
	return p.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		err = errors.Join(
			offload.Set(fd, dev, offload.TSO, !on),
			offload.Set(fd, dev, offload.GSO, !on),
			offload.Set(fd, dev, offload.GRO, on && merge),
		)
		if err != nil {
			return fmt.Errorf("%s: %w", p.Name(), err)
		}
		return nil
	})
}
