// SPDX-License-Identifier: Apache-2.0

// Package kube keeps leases in the Kubernetes API, as annotations of Nodes. A
// node's subnets are its Node's podCIDRs, which the controller manager hands
// out; what the package adds is how they are reached. It needs API server 1.30
// and the rights to get, list and watch nodes, to patch nodes/status and to
// create and patch events.
//
// What the package promises:
//
//   - All Nodes are watched by their metadata alone; the whole object is read
//     of our own Node, and once per Node UID of those that only flannel has
//     annotated, whose podCIDRs stand nowhere else.
//   - A change of a Node that does not change its lease causes no snapshot.
//   - Annotations that do not parse concern that one Node, which keeps its last
//     good lease. Annotations that were wiped do so too, for a while, for its
//     agent publishes them again.
//   - Our annotations are compared with what they should be whenever our Node
//     changes, and published again when somebody wiped them or the Node is
//     another object (another UID) now. Patches hold nothing but annotations,
//     or conditions, and the UID that they are meant for.
//   - Each address family is granted as soon as its podCIDR is there.
//   - Nothing ends because the API is out of reach, an object is missing or a
//     file is invalid: waiting is endless and says why (Reason, Events).
//
// Watching, listing, expired resource versions and restarts of the API server
// are client-go's Reflector's business. With flannel's dialect (Options.Flannel)
// exactly flannel's annotations are read and written.
package kube
