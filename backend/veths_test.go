// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
)

// Every veth is there, whatever it is attached to: one that were missing
// would count as gone, and its pod's address as free.
func TestVeths(t *testing.T) {
	enterNetns(t)
	run(t, "ip link add cni0 type bridge")
	run(t, "ip link add br9 type bridge")
	run(t, "ip link add vxlan9 type vxlan id 9 dstport 4790")
	addPod(t, "veth1", "10.42.1.5/24", "fd42:0:0:1::5/64")
	addPod(t, "veth2", "10.42.1.6/24")
	run(t, "ip link set veth2 nomaster")
	addPod(t, "veth3", "10.42.1.7/24")
	run(t, "ip link set veth3 master br9")
	run(t, "ip link add here type veth peer name there")
	run(t, "ip addr add 10.42.1.8/24 dev there")

	got, err := Veths(t.Context(), "cni0")
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, v := range got {
		lines = append(lines, fmt.Sprintf("%s port=%t bare=%t addrs=%v away=%t unread=%t", v.Host, v.Port, v.Bare, v.Addrs, v.Netns != nil, v.Unreadable != nil))
		if v.Index != ifindex(t, v.Host) {
			t.Errorf("%s has index %d", v.Host, v.Index)
		}
	}
	none := []netip.Addr(nil)
	want := []string{
		fmt.Sprintf("here port=false bare=true addrs=%v away=false unread=false", []string{"10.42.1.8"}),
		fmt.Sprintf("there port=false bare=true addrs=%v away=false unread=false", none),
		"veth1 port=true bare=false addrs=[10.42.1.5 fd42:0:0:1::5] away=true unread=false",
		"veth2 port=false bare=true addrs=[10.42.1.6] away=true unread=false",
		"veth3 port=false bare=false addrs=[10.42.1.7] away=true unread=false",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("got\n%q\nwant\n%q", lines, want)
	}
	if other, err := Veths(t.Context(), "cni1"); err != nil || len(other) != 5 || slices.ContainsFunc(other, func(v Veth) bool { return v.Port }) {
		t.Errorf("without a bridge: %v, %v", other, err)
	}
}

func TestDeleteBridge(t *testing.T) {
	enterNetns(t)
	run(t, "ip link add cni0 type bridge")
	run(t, "ip link set cni0 up")
	run(t, "ip link add vxlan9 type vxlan id 9 dstport 4790")
	addPod(t, "veth1")
	if found, err := DeleteBridge(t.Context(), "cni0"); err != nil || !found {
		t.Errorf("%t, %v", found, err)
	}
	ifindex(t, "veth1") // stays
	if found, err := DeleteBridge(t.Context(), "cni0"); err != nil || found {
		t.Errorf("again: %t, %v", found, err)
	}
	var foreign *ForeignDeviceError
	if _, err := DeleteBridge(t.Context(), "vxlan9"); !errors.As(err, &foreign) {
		t.Errorf("no bridge: %v", err)
	}
	ifindex(t, "vxlan9")
}
