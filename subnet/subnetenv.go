// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"
)

// Variables of subnet.env (flannel v0.28, pkg/subnet/subnet.go).
const (
	envNetwork4 = "FLANNEL_NETWORK"
	envSubnet4  = "FLANNEL_SUBNET"
	envNetwork6 = "FLANNEL_IPV6_NETWORK"
	envSubnet6  = "FLANNEL_IPV6_SUBNET"
	envMTU      = "FLANNEL_MTU"
	envIPMasq   = "FLANNEL_IPMASQ"
)

// Range of FLANNEL_MTU in bytes: what every IPv4 link carries (RFC 791,
// section 3.2) up to the largest IPv4 packet.
const (
	minPodMTU = 68
	maxMTU    = 65535
)

// SubnetEnv is what the agent tells the CNI plugin through subnet.env.
type SubnetEnv struct {
	// Networks are the pod networks, masked, IPv4 first; a family may have
	// several, which the file joins with commas.
	Networks []netip.Prefix
	// Subnets are this node's pod subnets as gateway address and prefix
	// length, e.g. 10.42.1.1/24; at most one a family, IPv4 first.
	Subnets []netip.Prefix
	MTU     int  // of pod interfaces, bytes, 68 to 65535
	IPMasq  bool // the agent masquerades, so the bridge plugin must not
}

// Encode renders the file with flannel's variables in flannel's order: the
// pair of IPv4, the pair of IPv6, MTU, IPMASQ. A family without networks and
// subnet is left out.
func (e SubnetEnv) Encode() []byte {
	var b bytes.Buffer
	put := func(name string, f Family, ps []netip.Prefix) {
		var texts []string
		for _, p := range ps {
			if FamilyOf(p.Addr()) == f {
				texts = append(texts, p.String())
			}
		}
		if texts != nil {
			fmt.Fprintf(&b, "%s=%s\n", name, strings.Join(texts, ","))
		}
	}
	put(envNetwork4, IPv4, e.Networks)
	put(envSubnet4, IPv4, e.Subnets)
	put(envNetwork6, IPv6, e.Networks)
	put(envSubnet6, IPv6, e.Subnets)
	fmt.Fprintf(&b, "%s=%d\n%s=%t\n", envMTU, e.MTU, envIPMasq, e.IPMasq)
	return b.Bytes()
}

// ParseSubnetEnv reads what Encode or flannel writes; source names data in
// errors. Blank lines, comments and other variables are ignored. A line
// without "=" or a missing variable is an error: the file is replaced as a
// whole, so a torn one means a writer that is not weft or flannel. So are
// quotes: no shell reads this file.
func ParseSubnetEnv(data []byte, source string) (SubnetEnv, error) {
	e, err := parseEnv(data)
	if err != nil {
		return SubnetEnv{}, fmt.Errorf("%s: %w", source, err)
	}
	return e, nil
}

func parseEnv(data []byte) (SubnetEnv, error) {
	if len(data) > maxDocument {
		return SubnetEnv{}, fmt.Errorf("%d bytes: want at most %d", len(data), maxDocument)
	}
	var e SubnetEnv
	seen := map[string]int{}
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || name == "" || strings.ContainsAny(name, " \t") {
			return SubnetEnv{}, fmt.Errorf("line %d %q: want NAME=value", i+1, clip(line))
		}
		if !slices.Contains(envNames(), name) {
			continue
		}
		if n, again := seen[name]; again {
			return SubnetEnv{}, fmt.Errorf("line %d: %s was set on line %d already", i+1, name, n)
		}
		seen[name] = i + 1
		if err := e.set(name, value); err != nil {
			return SubnetEnv{}, fmt.Errorf("line %d: %s=%s: %w", i+1, name, clip(value), err)
		}
	}
	return e, e.finish(seen)
}

// envNames lists the variables in the order in which they are written.
func envNames() []string {
	return []string{envNetwork4, envSubnet4, envNetwork6, envSubnet6, envMTU, envIPMasq}
}

// set takes one variable.
func (e *SubnetEnv) set(name, value string) (err error) {
	if strings.ContainsAny(value, `"'`) {
		return fmt.Errorf("want no quotes: write %s=%s", name, clip(strings.Trim(value, `"'`)))
	}
	switch name {
	case envNetwork4:
		return e.addNetworks(IPv4, value)
	case envNetwork6:
		return e.addNetworks(IPv6, value)
	case envSubnet4:
		return e.addSubnet(IPv4, value)
	case envSubnet6:
		return e.addSubnet(IPv6, value)
	case envMTU:
		e.MTU, err = strconv.Atoi(value)
		if err != nil || e.MTU < minPodMTU || e.MTU > maxMTU {
			return fmt.Errorf("want an integer from %d to %d", minPodMTU, maxMTU)
		}
	case envIPMasq:
		if value != "true" && value != "false" {
			return errors.New("want true or false")
		}
		e.IPMasq = value == "true"
	}
	return nil
}

func (e *SubnetEnv) addNetworks(f Family, value string) error {
	for text := range strings.SplitSeq(value, ",") {
		p, err := parsePrefix(f, text)
		if err != nil {
			return err
		}
		if p = p.Masked(); !slices.Contains(e.Networks, p) {
			e.Networks = append(e.Networks, p)
		}
	}
	return nil
}

func (e *SubnetEnv) addSubnet(f Family, value string) error {
	p, err := parsePrefix(f, value)
	e.Subnets = append(e.Subnets, p)
	return err
}

// parsePrefix reads a prefix of family f; host bits stay.
func parsePrefix(f Family, text string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(text)
	if err != nil || p.Addr().Is4In6() || FamilyOf(p.Addr()) != f {
		example := "10.42.0.0/16"
		if f == IPv6 {
			example = "fd00:42::/48"
		}
		return netip.Prefix{}, fmt.Errorf("want an %v prefix like %s", f, example)
	}
	return p, nil
}

// finish checks what only the whole file can tell, and orders the families.
func (e *SubnetEnv) finish(seen map[string]int) error {
	for _, pair := range [][2]string{{envNetwork4, envSubnet4}, {envNetwork6, envSubnet6}} {
		_, network := seen[pair[0]]
		_, subnet := seen[pair[1]]
		if network != subnet {
			return fmt.Errorf("want %s and %s together, have only one", pair[0], pair[1])
		}
	}
	var missing []string
	if len(e.Subnets) == 0 {
		missing = append(missing, envSubnet4+" or "+envSubnet6)
	}
	for _, name := range []string{envMTU, envIPMasq} {
		if _, ok := seen[name]; !ok {
			missing = append(missing, name)
		}
	}
	if missing != nil {
		return fmt.Errorf("incomplete: %s missing", strings.Join(missing, ", "))
	}
	byFamily := func(a, b netip.Prefix) int {
		return int(FamilyOf(a.Addr())) - int(FamilyOf(b.Addr()))
	}
	slices.SortStableFunc(e.Networks, byFamily)
	slices.SortStableFunc(e.Subnets, byFamily)
	return nil
}

// ReadSubnetEnv reads the file at path. The error of a file that is not
// there matches fs.ErrNotExist.
func ReadSubnetEnv(path string) (SubnetEnv, error) {
	f, err := os.Open(path)
	if err != nil {
		return SubnetEnv{}, fmt.Errorf("read subnet file: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxDocument+1))
	if err != nil {
		return SubnetEnv{}, fmt.Errorf("read subnet file: %w", err)
	}
	return ParseSubnetEnv(data, path)
}

// WriteSubnetEnv replaces the file at path in one step, with mode 0644
// whatever the umask, and creates its directory (0755) when missing. Readers
// see the old file or the new one. It refuses what ParseSubnetEnv would not
// read back.
func WriteSubnetEnv(path string, e SubnetEnv) error {
	data := e.Encode()
	if _, err := ParseSubnetEnv(data, path); err != nil {
		return fmt.Errorf("write subnet file %w", err)
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write subnet file %s: %w", path, err)
	}
	// The temporary file goes next to the target: a rename across file
	// systems, e.g. from $TMPDIR to /run, would fail.
	// And renameio's WriteFile would keep the mode of a file that is there.
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(dir), renameio.WithStaticPermissions(0o644))
	if err != nil {
		return fmt.Errorf("write subnet file %s: %w", path, err)
	}
	defer func() { _ = f.Cleanup() }() // after a rename there is nothing to clean
	if _, err = f.Write(data); err == nil {
		err = f.CloseAtomicallyReplace()
	}
	if err != nil {
		return fmt.Errorf("write subnet file %s: %w", path, err)
	}
	return nil
}
