// SPDX-License-Identifier: Apache-2.0

package parts

import (
	"fmt"
	"strings"
)

// A module is a Go module below modules/ whose go.mod pins what is built.
type module struct {
	name string // its directory
	of   string // the Go module whose version counts
	tags string
	// ldflags get the version for %s
	ldflags string
	parts   []part
}

// A part is one program.
type part struct {
	name string
	pkg  string
	test bool // the program is the package's test
}

// E2ETest is the name of Kubernetes' own test suite, the one part that takes
// as long to build as all others together.
const E2ETest = "e2e.test"

// Helm is the name of a part that few tests use.
const Helm = "helm"

// catalogue lists all parts, those first that a cluster needs most.
func catalogue() []module {
	return []module{
		{
			name: "kubernetes", of: "k8s.io/kubernetes",
			// Kubernetes takes its version from the linker, and components
			// refuse to work with others of "v0.0.0".
			ldflags: "-X k8s.io/component-base/version.gitVersion=%[1]s -X k8s.io/component-base/version.gitMajor=%[2]s -X k8s.io/component-base/version.gitMinor=%[3]s",
			parts: []part{
				{name: "kubelet", pkg: "k8s.io/kubernetes/cmd/kubelet"},
				{name: "kube-apiserver", pkg: "k8s.io/kubernetes/cmd/kube-apiserver"},
				{name: "kube-controller-manager", pkg: "k8s.io/kubernetes/cmd/kube-controller-manager"},
				{name: "kube-scheduler", pkg: "k8s.io/kubernetes/cmd/kube-scheduler"},
				{name: "kube-proxy", pkg: "k8s.io/kubernetes/cmd/kube-proxy"},
				{name: "kubectl", pkg: "k8s.io/kubernetes/cmd/kubectl"},
				{name: "agnhost", pkg: "k8s.io/kubernetes/test/images/agnhost"},
				{name: "ginkgo", pkg: "github.com/onsi/ginkgo/v2/ginkgo"}, // runs the suite in parallel
				{name: E2ETest, pkg: "./suite", test: true},
			},
		},
		{
			name: "containerd", of: "github.com/containerd/containerd/v2",
			// Snapshotters that need C libraries and other file systems.
			tags:    "no_btrfs no_devmapper no_zfs",
			ldflags: "-X github.com/containerd/containerd/v2/version.Version=%[1]s",
			parts: []part{
				{name: "containerd", pkg: "github.com/containerd/containerd/v2/cmd/containerd"},
				{name: "containerd-shim-runc-v2", pkg: "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"},
				{name: "ctr", pkg: "github.com/containerd/containerd/v2/cmd/ctr"},
			},
		},
		{
			name: "etcd", of: "go.etcd.io/etcd/server/v3",
			parts: []part{{name: "etcd", pkg: "go.etcd.io/etcd/server/v3"}},
		},
		{
			name: "coredns", of: "github.com/coredns/coredns",
			parts: []part{{name: "coredns", pkg: "."}},
		},
		{
			name: "helm", of: "helm.sh/helm/v3",
			parts: []part{{name: Helm, pkg: "helm.sh/helm/v3/cmd/helm"}},
		},
	}
}

// find returns the part called name and the module that it belongs to.
func find(name string) (module, part, error) {
	var known []string
	for _, m := range catalogue() {
		for _, p := range m.parts {
			if p.name == name {
				return m, p, nil
			}
			known = append(known, p.name)
		}
	}
	return module{}, part{}, fmt.Errorf("no part is called %q: want one of %s", name, strings.Join(known, ", "))
}

// link returns the linker flags for a version such as v1.37.2.
func (m module) link(version string) string {
	flags := "-s -w"
	if m.ldflags == "" {
		return flags
	}
	numbers := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	numbers = append(numbers, "", "") // a version that is not semantic names no numbers
	text := fmt.Sprintf(m.ldflags+"%.0[4]s", version, numbers[0], numbers[1], "")
	return flags + " " + text
}

// FromDebian names the programs that come from Debian packages, and which
// package it is. A cluster finds them by PATH.
func FromDebian() map[string]string {
	return map[string]string{
		"runc": "runc", "iptables": "iptables", "conntrack": "conntrack", "nft": "nftables", "ip": "iproute2",
		"mount": "mount", "gcc": "gcc", "busybox": "busybox-static", "bash": "bash", "curl": "curl",
		"dig": "bind9-dnsutils", "nc": "netcat-openbsd", "ping": "iputils-ping",
	}
}
