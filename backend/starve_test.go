// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// BenchmarkVethMeanwhile measures how long creating a pair of veth devices
// takes, which a CNI ADD does, while nothing happens (idle) and while a device
// is being given 20,000 peers, in another network namespace and in the same.
func BenchmarkVethMeanwhile(b *testing.B) {
	for _, busy := range []bool{false, true} {
		for _, same := range []bool{false, true} {
			b.Run(fmt.Sprintf("busy=%v/same=%v", busy, same), func(b *testing.B) { vethMeanwhile(b, busy, same) })
		}
	}
}

func vethMeanwhile(b *testing.B, busy, same bool) {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatal(err)
	}
	addUnderlay(b)
	k := newKernel(b, "weft.1")
	if !same {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			b.Fatal(err)
		}
	}
	c, err := dial()
	if err != nil {
		b.Fatal(err)
	}
	defer c.close()
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error, 1)
	go func() { ended <- program(ctx, k, busy) }()
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("c%d", i)
		start := time.Now()
		if err := c.change(b.Context(), vethRequest(name)); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
	slices.Sort(took)
	for _, q := range []int{50, 99} {
		b.ReportMetric(float64(took[(len(took)-1)*q/100].Microseconds()), fmt.Sprintf("p%d-us", q))
	}
	b.ReportMetric(float64(took[len(took)-1].Microseconds()), "max-us")
}

// program gives a device 20,000 peers again and again until ctx ends.
func program(ctx context.Context, k *Kernel, busy bool) error {
	changes := overlay.Diff(manyPeers(20000), overlay.NewState())[1:]
	for ctx.Err() == nil && busy {
		if err := k.Apply(context.WithoutCancel(ctx), overlay.Changes{del(link(subnet.IPv4)), add(link(subnet.IPv4))}); err != nil {
			return err
		}
		if err := k.Apply(ctx, changes); err != nil && ctx.Err() == nil {
			return err
		}
	}
	return nil
}

// vethRequest creates a pair of devices.
func vethRequest(name string) *nl.NetlinkRequest {
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.ZeroTerminated("veth"))
	return request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, nl.NewIfInfomsg(unix.AF_UNSPEC),
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)), info)
}
