// SPDX-License-Identifier: Apache-2.0

// Package overlay decides what the kernel should hold and keeps it so.
//
// Desired is a pure function from this node, the configuration and all
// leases to a State. Diff compares that with a State dumped from the kernel
// and yields ordered Changes: additions before deletions, so that a peer is
// reachable before its route appears and until its route is gone, and what the
// ingress guard admits is settled before anything can come in. The
// Reconciler runs the two whenever an input changes and at every resync.
//
// The package knows no netlink, etcd or Kubernetes: a Store delivers
// snapshots and a Kernel dumps and applies, and both are interfaces here.
package overlay
