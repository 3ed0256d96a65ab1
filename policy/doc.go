// SPDX-License-Identifier: Apache-2.0

// Package policy says which packets of pods the NetworkPolicies of a cluster
// let pass. It is pure: no clock, no I/O, no kernel.
//
// A Cluster is all that counts: pods, namespaces, policies. Two ways lead from
// it to a verdict, and tests hold them together. Cluster.Allows reads the
// policies as their documentation does, one after another; it is slow and
// meant to be obviously right. Compile makes the Table of one node, which has
// the shape of what is in the kernel: a constant number of maps, in which a
// packet's verdict is found by its classes, identities, protocol and port,
// however many policies there are. Table.Allows looks it up as the kernel does.
// What a Table may come to is bounded: namespaces that are too much for it are
// refused, their pods stay isolated, and Table.TooLarge names them.
//
// Semantics are those of networking.k8s.io/v1 (Kubernetes 1.37). Where these
// leave a choice: a pod always reaches itself; pods on the host's network are
// not selected and are peers by the node's addresses only; a packet that is
// neither TCP, UDP nor SCTP passes where a rule names no ports.
package policy
