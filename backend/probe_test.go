// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOldKernel(t *testing.T) {
	for release, old := range map[string]bool{
		"5.10": false, "5.10.0-32-amd64": false, "5.15.153.1-microsoft-standard-WSL2": false, "6.1.0": false, "6.18.44-fc-v595": false,
		"10.0": false, "7.0-rc1": false, "5.9.16": true, "5.4.0-200-generic": true, "4.19.0": true, "3.10.0-1160.el7.x86_64": true,
		"5": true, "": true, "linux": true, "5.x": true, "-6.1": true, "+6.1": true, ".10": true, "6.": true,
	} {
		p, got := oldKernel(release)
		if got != old {
			t.Errorf("%q: too old is %v, want %v", release, got, old)
		}
		if got && (p.Kind != "KernelTooOld" || !strings.Contains(p.String(), release) || !strings.Contains(p.Detail, "5.10")) {
			t.Errorf("%q: problem %q names neither it nor the minimum", release, p)
		}
	}
}

// TestProbe: this kernel is good, forwarding is reported with the command
// that mends it, and the probe leaves no device behind and announces none.
func TestProbe(t *testing.T) {
	enterNetns(t)
	sysctl(t, "net/ipv4/ip_forward", "0")
	sysctl(t, "net/ipv6/conf/all/forwarding", "0")
	before, m := run(t, "ip link show"), newMonitor(t)
	got, err := Probe(t.Context(), ProbeSpec{})
	if err != nil {
		t.Fatal(err)
	}
	if heard := m.drain(); len(heard) > 0 || run(t, "ip link show") != before {
		t.Errorf("the probe changed something: %q", heard)
	}
	want := []string{
		"ForwardingOff net.ipv4.ip_forward: it is 0, so no packet passes between pods and other nodes: run `sysctl -w net.ipv4.ip_forward=1`",
		"ForwardingOff net.ipv6.conf.all.forwarding: it is 0, so no packet passes between pods and other nodes: run `sysctl -w net.ipv6.conf.all.forwarding=1`",
	}
	for i, p := range got {
		if i >= len(want) || p.String() != want[i] {
			t.Errorf("unexpected problem %q", p)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d problems, want %d", len(got), len(want))
	}
	sysctl(t, "net/ipv4/ip_forward", "1")
	sysctl(t, "net/ipv6/conf/all/forwarding", "1")
	if got, err := Probe(t.Context(), ProbeSpec{}); err != nil || len(got) > 0 {
		t.Errorf("with forwarding on: %v, %v", got, err)
	}
}

// TestProbeWithoutNetAdmin: the kernel's refusal becomes a problem.
func TestProbeWithoutNetAdmin(t *testing.T) {
	enterNetns(t)
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil { // of this thread, which ends with the test
		t.Fatal(err)
	}
	got, err := Probe(t.Context(), ProbeSpec{})
	if err != nil || len(got) == 0 || got[0].Kind != "NetAdminMissing" || !strings.Contains(got[0].Detail, "CAP_NET_ADMIN") {
		t.Errorf("%v, %v, want NetAdminMissing", got, err)
	}
}

// TestSysctls: a family that the kernel does not have is no problem.
func TestSysctls(t *testing.T) {
	for _, c := range []struct {
		name string
		off  []string // files that hold 0; the others 1
		want []string // objects of problems
	}{
		{"all on", nil, nil},
		{"IPv4 off", []string{"net/ipv4/ip_forward", "net/ipv4/conf/weft.1/forwarding"}, []string{"net.ipv4.ip_forward"}},
		{"IPv6 off", []string{"net/ipv6/conf/all/forwarding"}, []string{"net.ipv6.conf.all.forwarding"}},
		{"one device off", []string{"net/ipv4/conf/weft.1/forwarding"}, []string{"net/ipv4/conf/weft.1/forwarding"}},
		{"another's off", []string{"net/ipv4/conf/eth9/forwarding"}, nil},
	} {
		root := t.TempDir()
		for _, f := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/ipv4/conf/weft.1/forwarding", "net/ipv4/conf/cni0/forwarding", "net/ipv4/conf/eth9/forwarding"} {
			value := "1\n"
			if slices.Contains(c.off, f) {
				value = "0\n"
			}
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, f)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, f), []byte(value), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		problems, err := sysctlProblems(root, []string{"weft.1", "weft6.1", "cni0"})
		var got []string
		for _, p := range problems {
			got = append(got, p.Object)
			if !strings.Contains(p.Detail, "sysctl -w "+p.Object+"=1") {
				t.Errorf("%s: %s names no command", c.name, p)
			}
		}
		if err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, %v, want %q", c.name, got, err, c.want)
		}
	}
}

// TestNoVXLAN: what an operator reads when the driver is missing, which this
// kernel cannot be made to say.
func TestNoVXLAN(t *testing.T) {
	err := (&Kernel{}).explainCreate(t.Context(), link(4), unix.EOPNOTSUPP)
	wantErr(t, err, "no VXLAN support", "modprobe vxlan", "Linux 5.10 or newer")
}
