// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// minimumKernel is the oldest Linux that weft supports.
const minimumKernel = "5.10"

// ProbeSpec tells Probe what weft does on this node. Probe leaves out what
// concerns only a zero field.
type ProbeSpec struct {
	Networks []netip.Prefix // pod networks; of one that is open (subnet.Network), our subnet
	Leased   []netip.Prefix // peers' subnets in open networks
	Own      []netip.Prefix // this node's pod subnets
	Devices  []string       // our VXLAN devices
	Bridge   string         // the pods'
	// Underlays are those that peers' packets arrive on without VXLAN, with
	// DirectRouting or host-gw; empty where there is neither.
	Underlays []overlay.Underlay
}

// forwarders are the devices that pods' packets come in by.
func (s ProbeSpec) forwarders() []string {
	out := slices.Clone(s.Devices)
	if s.Bridge != "" {
		out = append(out, s.Bridge)
	}
	for _, u := range s.Underlays {
		if !slices.Contains(out, u.Dev) {
			out = append(out, u.Dev)
		}
	}
	return out
}

// Probe returns what this kernel and network namespace lack, and what in them
// is in the way, each with the command that mends it: problems of kind
//
//   - KernelTooOld, VXLANMissing, NetAdminMissing, ForwardingOff;
//   - ForwardDropped: another's nftables chain drops what is forwarded;
//   - RouteShadowed: another's route leads into a pod network;
//   - ReversePathFilter: strict on an underlay.
//
// It changes nothing. The error is about the probe itself; problems found
// until then come with it.
func Probe(ctx context.Context, spec ProbeSpec) ([]subnet.Problem, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, fmt.Errorf("uname: %w", err)
	}
	var out []subnet.Problem
	if p, ok := oldKernel(unix.ByteSliceToString(uts.Release[:])); ok {
		out = append(out, p)
	}
	p, ok, err := vxlanProblem(ctx)
	if err != nil {
		return out, err
	}
	if ok {
		out = append(out, p)
	}
	for _, look := range []func() ([]subnet.Problem, error){
		func() ([]subnet.Problem, error) { return sysctlProblems("/proc/sys", spec.forwarders()) },
		func() ([]subnet.Problem, error) { return forwardProblems(ctx, spec) },
		func() ([]subnet.Problem, error) { return routeProblems(ctx, spec) },
		func() ([]subnet.Problem, error) { return reversePathProblems("/proc/sys", spec) },
	} {
		more, err := look()
		out = append(out, more...)
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// oldKernel compares a release as uname prints it with minimumKernel.
func oldKernel(release string) (subnet.Problem, bool) {
	want, _ := parseRelease(minimumKernel)
	have, err := parseRelease(release)
	if err == nil && (have.major > want.major || have.major == want.major && have.minor >= want.minor) {
		return subnet.Problem{}, false
	}
	p := subnet.Problem{Kind: "KernelTooOld", Object: "Linux " + release, Detail: "weft needs Linux " + minimumKernel + " or newer"}
	if err != nil {
		p.Detail += ": " + err.Error()
	}
	return p, true
}

// release is the version of a kernel.
type release struct{ major, minor int }

// parseRelease reads the first two numbers of e.g. "6.1.0-18-amd64" or "5.10".
func parseRelease(s string) (release, error) {
	var r release
	major, rest, ok := strings.Cut(s, ".")
	minor := rest
	if i := strings.IndexFunc(rest, func(c rune) bool { return c < '0' || c > '9' }); i >= 0 {
		minor = rest[:i]
	}
	var err1, err2 error
	r.major, err1 = strconv.Atoi(major)
	r.minor, err2 = strconv.Atoi(minor)
	if !ok || err1 != nil || err2 != nil || r.major < 0 || strings.ContainsAny(major, "+ ") {
		return release{}, fmt.Errorf("kernel release %q does not begin with two numbers like %s", s, minimumKernel)
	}
	return r, nil
}

// vxlanProblem asks for a VXLAN device with a VNI that cannot be: a kernel
// with the driver, loaded now if it is a module, answers ERANGE from
// vxlan_validate (drivers/net/vxlan/vxlan_core.c) before it makes anything.
func vxlanProblem(ctx context.Context) (subnet.Problem, bool, error) {
	c, err := dial()
	if err != nil {
		return subnet.Problem{}, false, err
	}
	defer c.close()
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(unix.IFLA_INFO_KIND, nl.NonZeroTerminated(kindVXLAN))
	info.AddRtAttr(unix.IFLA_INFO_DATA, nil).AddRtAttr(unix.IFLA_VXLAN_ID, nl.Uint32Attr(maxVNI+1))
	err = c.change(ctx, request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, nl.NewIfInfomsg(unix.AF_UNSPEC), info))
	switch {
	case errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL):
		return subnet.Problem{}, false, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		return subnet.Problem{Kind: "VXLANMissing", Object: "vxlan", Detail: noVXLAN}, true, nil
	case errors.Is(err, unix.EPERM):
		return subnet.Problem{Kind: "NetAdminMissing", Object: "CAP_NET_ADMIN",
			Detail: "the kernel refuses to configure devices: run weftd with the capability CAP_NET_ADMIN in this network namespace"}, true, nil
	case err == nil:
		err = errors.New("the kernel accepted a VNI that is out of range")
	}
	return subnet.Problem{}, false, fmt.Errorf("probe VXLAN: %w", err)
}

// maxVNI is the largest VXLAN network identifier (RFC 7348 section 5: 24 bits).
const maxVNI = 1<<24 - 1

// sysctlProblems checks that packets are forwarded: at all, and IPv4 from each
// of the devices, which has a switch of its own. root is /proc/sys, as the
// process sees it. A setting that is not there belongs to a family or a device
// that is not there.
func sysctlProblems(root string, devices []string) ([]subnet.Problem, error) {
	var out []subnet.Problem
	check := func(path, name, effect string) (off bool, err error) {
		b, err := os.ReadFile(root + "/" + path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return false, nil
		case err != nil:
			return false, fmt.Errorf("read sysctl %s: %w", name, err)
		case string(bytes.TrimSpace(b)) != "0":
			return false, nil
		}
		out = append(out, subnet.Problem{Kind: "ForwardingOff", Object: name,
			Detail: fmt.Sprintf("it is 0, so no packet passes %s: run `sysctl -w %s=1`", effect, name)})
		return true, nil
	}
	const between = "between pods and other nodes"
	off4, err := check("net/ipv4/ip_forward", "net.ipv4.ip_forward", between)
	if err == nil {
		_, err = check("net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding", between)
	}
	for _, dev := range devices {
		if err != nil || off4 { // which says it for all
			break
		}
		// A name may have dots: sysctl takes slashes too.
		path := "net/ipv4/conf/" + dev + "/forwarding"
		_, err = check(path, path, "from "+dev+" on")
	}
	return out, err
}
