// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"weft.dev/weft/tests/e2e/parts"
	"weft.dev/weft/tests/netlab"
)

// Config says what cluster to build. A launcher hands it to its control
// process as JSON.
type Config struct {
	Nodes  int       // 1 to 50, named n1, n2, ...
	Family string    // of nodes, pods and services: ipv4, ipv6 or dual
	Proxy  string    // kube-proxy's mode: nftables or iptables
	Parts  parts.Set // what it is built from
	Images []string  // further archives that each node gets
	LogDir string    // where logs go; it must exist, outside of /run

	Progress io.Writer `json:"-"` // one line for each step; default: nowhere
}

// Check returns an error that says what is wrong with the configuration.
func (c Config) Check() error {
	if c.Nodes < 1 || c.Nodes > maxNodes {
		return fmt.Errorf("%d nodes: want 1 to %d", c.Nodes, maxNodes)
	}
	if _, err := netlab.ParseUnderlay(c.Family); err != nil {
		return fmt.Errorf("family %q: want dual, ipv4 or ipv6", c.Family)
	}
	if c.Proxy != "nftables" && c.Proxy != "iptables" {
		return fmt.Errorf("kube-proxy mode %q: want nftables or iptables", c.Proxy)
	}
	if !filepath.IsAbs(c.LogDir) || strings.HasPrefix(c.LogDir+"/", "/run/") {
		return fmt.Errorf("log directory %q: want an absolute path outside of /run, which a lab hides", c.LogDir)
	}
	return nil
}
