// SPDX-License-Identifier: Apache-2.0

// Command weft is the CNI plugin of weft. It owns no interface itself: it
// takes the node's lease from subnet.env, renders from it and from the CNI
// network configuration the configuration of a delegate (bridge with
// host-local, unless told otherwise), and runs that.
//
// The path of one ADD: parseNetConf -> subnet.ReadSubnetEnv -> render (pure)
// -> stateDir.save -> delegate. DEL replays what ADD saved, and renders anew
// when there is nothing to replay, so that it always reaches the delegate.
//
// Input, output and error codes are those of the CNI specification 1.1.0;
// what is rendered follows flannel's CNI plugin v1.9.1.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

func main() {
	var p plugin
	skel.PluginMainFuncs(skel.CNIFuncs{
		Add:    p.add,
		Del:    p.del,
		Check:  p.check,
		Status: p.status,
		GC:     p.gc,
	}, version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0"), "CNI plugin weft")
}
