// SPDX-License-Identifier: Apache-2.0

// Package enforce brings NetworkPolicies into force on one node.
//
// What it does is one function of three inputs, made anew at each change: the
// cluster's pods, namespaces and policies (policy/kube), this node's own pods
// (the CNI ledger), and its subnets. They are compiled (policy) and brought
// into the kernel (policy/rules), and the kernel is looked at every few
// seconds and whenever somebody else changes it.
//
// Nothing is written before all three are known: until then the table of the
// agent before this one is in force, or none after a boot, and no pod is
// admitted. Admit is what a pod's start waits for: it returns when the kernel
// knows the pod's addresses and the policies that are for it. The table stays
// when Run ends.
package enforce
