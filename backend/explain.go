// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// noVXLAN says what is missing and how to mend it.
const noVXLAN = "this kernel has no VXLAN support (CONFIG_VXLAN): run `modprobe vxlan`, or boot Linux " + minimumKernel + " or newer with it"

// explainCreate adds to the kernel's refusal to create want what an operator
// needs to mend it.
func (k *Kernel) explainCreate(ctx context.Context, want overlay.Link, err error) error {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%s: %w", noVXLAN, err)
	case !errors.Is(err, unix.EEXIST):
		return err
	}
	other, found := k.rival(ctx, func(v vxlan) bool {
		return v.vni == want.VNI && v.port == want.Port && v.family() == subnet.FamilyOf(want.Local)
	})
	if !found {
		other = "a device in another network namespace"
	}
	return fmt.Errorf("%s holds VNI %d on UDP port %d over %v, and the kernel allows one such device: delete it, or choose another VNI or port: %w",
		other, want.VNI, want.Port, subnet.FamilyOf(want.Local), err)
}

// explainMTU does the same for an MTU, of which the kernel says only that it
// is invalid.
func (k *Kernel) explainMTU(ctx context.Context, want overlay.Link, err error) error {
	if l, found, lookupErr := k.link(ctx, want.Underlay, 0); errors.Is(err, unix.EINVAL) && lookupErr == nil && found {
		return fmt.Errorf("set mtu %d: underlay %s has MTU %d, which leaves less: %w", want.MTU, want.Underlay, l.mtu, err)
	}
	return fmt.Errorf("set mtu %d: %w", want.MTU, err)
}

// explainUp does the same for setting want up, when the socket is opened.
func (k *Kernel) explainUp(ctx context.Context, want overlay.Link, err error) error {
	if !errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("set up %v: %w", want.Up, err)
	}
	other, found := k.rival(ctx, func(v vxlan) bool {
		return v.port == want.Port && v.family() == subnet.FamilyOf(want.Local) && v.vni != want.VNI
	})
	if !found {
		other = "another program"
	}
	return fmt.Errorf("set up true: UDP port %d is held by %s (see `ss -lun sport = :%d`): %w", want.Port, other, want.Port, err)
}

// explainRoute does the same for a route with a gateway that another route
// leads elsewhere: the kernel refuses such an IPv6 route, onlink or not.
func (k *Kernel) explainRoute(ctx context.Context, e overlay.Entry, dev device, err error) error {
	r, ok := e.(overlay.Route)
	if !ok || !r.Via.Is6() {
		return err
	}
	index, _, lookupErr := k.routeTo(ctx, r.Via)
	if lookupErr != nil || index == dev.index {
		return err
	}
	name, lookupErr := k.nameOf(ctx, index)
	if lookupErr != nil {
		return err
	}
	return fmt.Errorf("another route leads its gateway %s to %s: %w", r.Via, name, err)
}

// rival finds a VXLAN device of this namespace that match accepts.
func (k *Kernel) rival(ctx context.Context, match func(vxlan) bool) (name string, found bool) {
	msgs, err := k.conn.dump(ctx, func() *nl.NetlinkRequest {
		return request(unix.RTM_GETLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC),
			nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	})
	if err != nil {
		return "", false
	}
	for _, m := range msgs {
		l, err := decodeLink(m)
		if err == nil && l.kind == kindVXLAN && match(decodeVXLAN(l.data)) {
			return "device " + l.name, true
		}
	}
	return "", false
}
