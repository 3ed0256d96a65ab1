// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"net/netip"
	"os"
	"strings"
	"testing"

	"weft.dev/weft/subnet"
)

// What Kubernetes is told of addresses, in each family and in both.
func TestAddressPlan(t *testing.T) {
	for _, c := range []struct{ family, pods, services, dns, api string }{
		{"ipv4", "10.244.0.0/16", "10.96.0.0/16", "10.96.0.10", "https://192.168.77.1:6443"},
		{"ipv6", "fd00:10:244::/48", "fd00:10:96::/112", "fd00:10:96::a", "https://[fd77::1]:6443"},
		{"dual", "10.244.0.0/16,fd00:10:244::/48", "10.96.0.0/16,fd00:10:96::/112", "10.96.0.10", "https://192.168.77.1:6443"},
	} {
		conf := Config{Family: c.family}
		got := []string{each(conf.Families(), podNetwork), each(conf.Families(), serviceNetwork),
			serviceAddr(conf.Families()[0], 10).String(), conf.endpoint()}
		for i, want := range []string{c.pods, c.services, c.dns, c.api} {
			if got[i] != want {
				t.Errorf("%s: %s, want %s", c.family, got[i], want)
			}
		}
	}
	if got := fabricAddr(subnet.IPv6, 7).String(); got != "fd77::7" {
		t.Errorf("node 7 is %s", got)
	}
}

// A configuration that cannot work names the value and what is allowed.
func TestConfigCheck(t *testing.T) {
	good := Config{Nodes: 3, Family: "dual", Proxy: "nftables", LogDir: "/var/tmp"}
	if err := good.Check(); err != nil {
		t.Errorf("%+v: %v", good, err)
	}
	for want, spoil := range map[string]func(*Config){
		"0 nodes":       func(c *Config) { c.Nodes = 0 },
		`"both"`:        func(c *Config) { c.Family = "both" },
		`"ipvs"`:        func(c *Config) { c.Proxy = "ipvs" },
		`"/run/x"`:      func(c *Config) { c.LogDir = "/run/x" },
		`directory "l"`: func(c *Config) { c.LogDir = "l" },
	} {
		bad := good
		spoil(&bad)
		if err := bad.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want a mention of %s", bad, err, want)
		}
	}
}

// A certificate says what Kubernetes takes user, groups and host from, and is
// trusted by who trusts the authority.
func TestIssue(t *testing.T) {
	a, err := newAuthority()
	if err != nil {
		t.Fatal(err)
	}
	pair, err := a.issue(subject{user: "system:node:n1", groups: []string{"system:nodes"}, names: []string{"n1"},
		addrs: []netip.Addr{netip.MustParseAddr("192.168.77.1"), netip.MustParseAddr("fd77::1")}})
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(pair.cert)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	for _, name := range []string{"n1", "192.168.77.1", "fd77::1"} {
		for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
			if _, err := cert.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, KeyUsages: []x509.ExtKeyUsage{use}}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if cert.Subject.CommonName != "system:node:n1" || cert.Subject.Organization[0] != "system:nodes" {
		t.Errorf("issued to %s", cert.Subject)
	}
}

// What a keeper that was killed leaves is recognized, and nothing else is.
func TestKept(t *testing.T) {
	for name, want := range map[string]bool{
		cgroupName("e2e", os.Getpid()): false, // alive, and no keeper
		cgroupName("e2e", 1<<22):       false, // above pid_max
		"weft-e2e.made.by-hand":        true,
	} {
		if got := kept(name); got != want {
			t.Errorf("kept(%s) is %t, want %t", name, got, want)
		}
	}
}

// A node that is missing, not Ready or tainted is named, with what it says.
func TestAllReady(t *testing.T) {
	var o nodeObject
	err := json.Unmarshal([]byte(`{"metadata":{"name":"n1","uid":"u"},"spec":{"podCIDRs":["10.244.0.0/24"],
		"taints":[{"key":"node.kubernetes.io/not-ready","effect":"NoSchedule"}]},
		"status":{"conditions":[{"type":"Ready","status":"False","reason":"KubeletNotReady","message":"cni plugin not initialized"}]}}`), &o)
	if err != nil {
		t.Fatal(err)
	}
	bad := o.state()
	good := NodeState{Name: "n2", Ready: true, Taints: []string{"dedicated:NoSchedule"}}
	if err := allReady([]NodeState{good}, 1); err != nil {
		t.Errorf("%+v: %v", good, err)
	}
	for _, want := range []string{"2 nodes are registered, want 3", "n1 is not Ready: KubeletNotReady: cni plugin", "n1 is tainted node.kubernetes.io/not-ready:NoSchedule"} {
		if err := allReady([]NodeState{bad, good}, 3); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want a mention of %q", err, want)
		}
	}
}
