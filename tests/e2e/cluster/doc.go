// SPDX-License-Identifier: Apache-2.0

// Package cluster is a real Kubernetes on one machine: a control plane and a
// few nodes, each a network, mount and UTS namespace with its own containerd,
// kubelet and kube-proxy. It comes without a network for pods, so that its
// nodes are NotReady: giving them one is what weft's manifest is tested for.
//
// A cluster is a lab of package netlab and inherits what that promises: no
// process, mount, namespace, device or file outlives the lab's init, since all
// of it is inside private namespaces and on a private tmpfs. Only control
// groups are the machine's. They are removed by a keeper:
//
//	launcher            the caller: weft-e2e, or a test
//	└─ keeper           in a session of its own; removes the control groups
//	   └─ init          PID 1 of new PID, mount and network namespaces
//	      └─ control    the code that uses this package
//	         ├─ etcd, kube-apiserver, ...   in node n1's network namespace
//	         ├─ node n1                     holds the node's namespaces
//	         ├─ containerd, kubelet, kube-proxy  in them
//	         └─ containerd-shim-runc-v2, pods
//
// When the launcher ends, however it ends, the keeper ends the lab and then
// removes its control groups. When the keeper is killed the lab dies with it,
// and the launcher, or else the next keeper, removes them.
//
// A program that uses the package calls Stage first thing in main. Outside,
// Launcher.Run starts the control process; inside, New returns the Cluster.
package cluster
