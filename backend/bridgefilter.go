// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// bridgeSysctls is there while br_netfilter is loaded.
const bridgeSysctls = "/proc/sys/net/bridge"

// ErrNoBridgeFilter says that frames between ports of a bridge do not pass
// nftables' hooks for IP, and cannot be made to.
var ErrNoBridgeFilter = errors.New("br_netfilter is not loaded: `modprobe br_netfilter` on the node")

// FilterBridge makes what a bridge forwards between its ports pass the hooks of
// IP, conntrack among them, and reports whether there is such a bridge. It sets
// the bridge's own switches (IFLA_BR_NF_CALL_IPTABLES and _IP6TABLES,
// linux/if_link.h), so that the sysctls of all bridges do not matter: the kernel
// takes either (br_nf_pre_routing, net/bridge/br_netfilter_hooks.c). The
// error is ErrNoBridgeFilter where the kernel module is missing, and a
// ForeignDeviceError where the name is no bridge's.
func FilterBridge(ctx context.Context, bridge string) (found bool, err error) {
	c, err := dial()
	if err != nil {
		return false, err
	}
	defer c.close()
	k := &Kernel{conn: c}
	b, found, err := k.link(ctx, bridge, 0)
	switch {
	case err != nil:
		return false, fmt.Errorf("look up bridge %s: %w", bridge, err)
	case !found:
		return false, nil
	case b.kind != kindBridge:
		return false, &ForeignDeviceError{Dev: bridge, Kind: b.kind}
	}
	if _, err := os.Stat(bridgeSysctls); errors.Is(err, fs.ErrNotExist) {
		return true, ErrNoBridgeFilter
	}
	on := 0
	for t, v := range attrs(b.data) {
		if (t == nl.IFLA_BR_NF_CALL_IPTABLES || t == nl.IFLA_BR_NF_CALL_IP6TABLES) && len(v) == 1 && v[0] == 1 {
			on++
		}
	}
	if on == 2 {
		return true, nil
	}
	h := nl.NewIfInfomsg(unix.AF_UNSPEC)
	h.Index = int32(b.index)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated(kindBridge))
	data := info.AddRtAttr(unix.IFLA_INFO_DATA, nil)
	data.AddRtAttr(nl.IFLA_BR_NF_CALL_IPTABLES, nl.Uint8Attr(1))
	data.AddRtAttr(nl.IFLA_BR_NF_CALL_IP6TABLES, nl.Uint8Attr(1))
	if err := k.conn.change(ctx, request(unix.RTM_NEWLINK, 0, h, info)); err != nil {
		return true, fmt.Errorf("set nf_call_iptables and nf_call_ip6tables of bridge %s: %w", bridge, err)
	}
	return true, nil
}
