// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"encoding/binary"
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

// noLinkLocalLearn is the bit of IFLA_BR_MULTI_BOOLOPT that keeps a bridge from
// learning from frames to 01:80:c2:00:00:0X, which meet no hook
// (BR_BOOLOPT_NO_LL_LEARN, linux/if_bridge.h, Linux 4.20).
const noLinkLocalLearn = 1 << 0

// GuardBridge makes what pods send each other over a bridge subject to
// nftables, and reports whether there is such a bridge: what it forwards between
// its ports passes the hooks of IP, conntrack among them, and it learns nothing
// from frames that pass no hook. It sets the bridge's own switches
// (IFLA_BR_NF_CALL_IPTABLES and _IP6TABLES, linux/if_link.h), so that the sysctls
// of all bridges do not matter: the kernel takes either (br_nf_pre_routing,
// net/bridge/br_netfilter_hooks.c). The error is ErrNoBridgeFilter where that
// kernel module is missing and all else is done, and a ForeignDeviceError where
// the name is no bridge's.
func GuardBridge(ctx context.Context, bridge string) (found bool, err error) {
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
	filtered := true
	if _, err := os.Stat(bridgeSysctls); errors.Is(err, fs.ErrNotExist) {
		filtered = false
	}
	h := nl.NewIfInfomsg(unix.AF_UNSPEC)
	h.Index = int32(b.index)
	if info := bridgeChange(b.data, filtered); info != nil {
		if err := k.conn.change(ctx, request(unix.RTM_NEWLINK, 0, h, info)); err != nil {
			return true, fmt.Errorf("set nf_call_iptables, nf_call_ip6tables and no_linklocal_learn of bridge %s: %w", bridge, err)
		}
	}
	if !filtered {
		return true, ErrNoBridgeFilter
	}
	return true, nil
}

// bridgeChange is what has to be set of a bridge with these attributes; nil if
// it is.
func bridgeChange(have []byte, filtered bool) *nl.RtAttr {
	hooked, deaf := 0, false
	for t, v := range attrs(have) {
		switch {
		case (t == nl.IFLA_BR_NF_CALL_IPTABLES || t == nl.IFLA_BR_NF_CALL_IP6TABLES) && len(v) == 1 && v[0] == 1:
			hooked++
		case t == unix.IFLA_BR_MULTI_BOOLOPT && len(v) == 8:
			deaf = binary.NativeEndian.Uint32(v)&noLinkLocalLearn != 0
		}
	}
	if deaf && (hooked == 2 || !filtered) {
		return nil
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated(kindBridge))
	data := info.AddRtAttr(unix.IFLA_INFO_DATA, nil)
	if filtered {
		data.AddRtAttr(nl.IFLA_BR_NF_CALL_IPTABLES, nl.Uint8Attr(1))
		data.AddRtAttr(nl.IFLA_BR_NF_CALL_IP6TABLES, nl.Uint8Attr(1))
	}
	// A value, and a mask of what of it counts.
	opt := binary.NativeEndian.AppendUint32(nil, noLinkLocalLearn)
	data.AddRtAttr(unix.IFLA_BR_MULTI_BOOLOPT, binary.NativeEndian.AppendUint32(opt, noLinkLocalLearn))
	return info
}
