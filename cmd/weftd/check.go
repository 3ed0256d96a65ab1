// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/spf13/pflag"

	"weft.dev/weft/subnet"
)

// checkConfig prints every setting with its origin, and checks a net-conf.json
// if one was named.
func checkConfig(o *options, w io.Writer) error {
	for _, line := range describe(o) {
		fmt.Fprintln(w, line)
	}
	// Who writes the file of a cluster has no agent's credentials.
	if o.CheckFile == "" || o.Store != storeKube {
		if err := checkStore(o); err != nil {
			return err
		}
	}
	if o.CheckFile == "" {
		fmt.Fprintln(w, "ok")
		return nil
	}
	return checkNetConf(o, w)
}

// describe renders each flag, its value and where the value came from.
func describe(o *options) []string {
	var out []string
	o.flags.VisitAll(func(f *pflag.Flag) {
		if f.Name == "check-config" {
			return
		}
		val := f.Value.String()
		if f.Name == "etcd-password" && val != "" {
			val = "(hidden)"
		}
		out = append(out, fmt.Sprintf("%-20s %-40q %s", f.Name, val, o.origin[f.Name]))
	})
	return out
}

// checkStore validates endpoints and certificates without connecting.
func checkStore(o *options) error {
	s, err := newStore(o, nil)
	if err != nil {
		return err
	}
	return s.Close()
}

func checkNetConf(o *options, w io.Writer) error {
	data, err := os.ReadFile(o.CheckFile)
	if err != nil {
		return fmt.Errorf("read the network configuration: %w", err)
	}
	cfg, err := subnet.ParseConfig(data, o.CheckFile, subnet.Defaults{Flannel: o.FlannelCompat, Open: o.Store == storeKube})
	if err != nil {
		return err
	}
	for _, n := range cfg.Networks {
		if o.Store == storeKube {
			fmt.Fprintf(w, "network %s: subnets are the nodes' podCIDRs\n", openText(n))
			continue
		}
		fmt.Fprintf(w, "network %s: subnets of /%d from %s to %s\n", n.Prefix, n.SubnetLen, n.SubnetMin, n.SubnetMax)
	}
	b := cfg.Backend
	fmt.Fprintf(w, "backend %s: VNI %d, UDP port %d, learning %t, direct routing %t\nok\n", b.Type, b.VNI, b.Port, b.Learning, b.DirectRouting)
	return nil
}

// openText names n before the cluster was asked.
func openText(n subnet.Network) string {
	if n.Open() {
		return subnet.FamilyOf(n.Prefix.Addr()).String() + " as the cluster says, if nodes have podCIDRs of it"
	}
	return n.Prefix.String()
}

// gateway is the first usable address of a path's subnet, which the bridge
// takes, with the subnet's length.
func gateway(p subnet.Path) netip.Prefix {
	return netip.PrefixFrom(p.Subnet.Addr().Next(), p.Subnet.Bits())
}
