// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"golang.org/x/sys/unix"

	"weft.dev/weft/subnet"
)

// SpoofPod is what SpoofTable's rules know about one pod.
//
// The port is known by its name, not by its index: a name can be written before
// the device is there and reads well in a listing. The price is that elements of
// a port that is gone hold for the next port of that name; so who keeps the
// table leaves out pods whose ports are gone, and names of ports should be
// random, as those of the bridge plugin are.
type SpoofPod struct {
	Port string           // the bridge's end of the pod's link
	MAC  net.HardwareAddr // of the pod's end
	// Addrs are the pod's addresses, and what else it may use. The link-local
	// address that Linux makes from the MAC need not be among them; any other that
	// the pod uses has to be. There are no prefixes: a set of prefixes that is keyed
	// by port, address and MAC costs milliseconds for each change.
	Addrs []netip.Addr
}

// portKey is a port's name as elements have it.
func portKey(name string) ([]byte, error) {
	if name == "" || len(name) > maxDevice || strings.Contains(name, "\x00") {
		return nil, fmt.Errorf("port %q: want 1 to %d bytes", name, maxDevice)
	}
	port := make([]byte, unix.IFNAMSIZ)
	copy(port, name)
	return port, nil
}

// ClosedPort returns the element that keeps what the bridge forwards from port,
// and port from what it forwards.
func ClosedPort(port string) (Element, error) {
	key, err := portKey(port)
	return Element{Set: closedPorts, Key: Key(key)}, err
}

// SpoofElements returns the elements of SpoofTable's sets for one pod. It fails,
// and returns none, where one of the pod's properties is none that a frame can
// show.
func SpoofElements(p SpoofPod) ([]Element, error) {
	port, err := portKey(p.Port)
	if err != nil {
		return nil, err
	}
	if len(p.MAC) != 6 || p.MAC[0]&1 != 0 || string(p.MAC) == string(make([]byte, 6)) {
		return nil, fmt.Errorf("MAC %q of port %s: want 6 bytes of a single station", p.MAC, p.Port)
	}
	mac := []byte(p.MAC)
	out := []Element{
		{Set: spoofPorts, Key: Key(port)},
		{Set: spoofMACs, Key: Key(port, mac)},
		{Set: spoofOptions, Key: Key(port, mac)},
	}
	seen := map[netip.Addr]bool{}
	for _, a := range append([]netip.Addr{linkLocal(p.MAC)}, p.Addrs...) {
		if err := source(a); err != nil {
			return nil, fmt.Errorf("port %s: %w", p.Port, err)
		}
		if seen[a] {
			continue
		}
		seen[a] = true
		f, key := subnet.FamilyOf(a), Key(port, a.AsSlice(), mac)
		out = append(out, Element{Set: spoofSource(f), Key: key})
		if f == subnet.IPv6 {
			out = append(out, Element{Set: spoofTargets, Key: key})
		}
	}
	return out, nil
}

// source fails for what can be no pod's address. 0.0.0.0 and :: are among that:
// every pod that has none yet sends from there.
func source(a netip.Addr) error {
	if err := plain(a); err != nil {
		return err
	}
	if a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return fmt.Errorf("address %v: want one of a single host", a)
	}
	return nil
}

// linkLocal is the address that Linux gives a device with that MAC (RFC 4291
// appendix A) unless its addrgenmode says otherwise.
func linkLocal(mac net.HardwareAddr) netip.Addr {
	a := [16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}
	return netip.AddrFrom16(a)
}
