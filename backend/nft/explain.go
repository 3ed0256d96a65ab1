// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrUnsupported is wrapped by errors of a kernel that cannot do nftables.
var ErrUnsupported = errors.New("this kernel has no nf_tables: it takes CONFIG_NF_TABLES and CONFIG_NF_TABLES_INET, or the module nf_tables (modprobe nf_tables)")

// explain says what an errno means that the kernel answers to a question
// which is well formed for certain. Without nf_tables there is nobody behind
// its subsystem number, and nfnetlink_rcv_msg (net/netfilter/nfnetlink.c) says
// EINVAL, for a batch EOPNOTSUPP; without nfnetlink there is no such socket.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT):
		return fmt.Errorf("%w: %w", ErrUnsupported, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("needs the capability CAP_NET_ADMIN: %w", err)
	}
	return err
}

// lacking says what a kernel may lack that refuses to make a table anew.
func lacking(err error) error {
	if errors.Is(err, ErrUnsupported) || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) {
		return err
	}
	return fmt.Errorf("%w (does the kernel lack CONFIG_NF_TABLES_INET, CONFIG_NFT_CT, CONFIG_NFT_NAT or CONFIG_NFT_MASQ?)", err)
}
