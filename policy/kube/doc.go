// SPDX-License-Identifier: Apache-2.0

// Package kube delivers what policies depend on, from the Kubernetes API: the
// pods of all nodes, namespaces and NetworkPolicies. It needs API server 1.30
// and the rights to get, list and watch these three.
//
// What the package promises:
//
//   - There is no snapshot before all three have been listed: what it lacks
//     would be let pass, or be cut off. From then on each is whole, one for all
//     that has changed together, none when nothing has that counts.
//   - A pod or policy that has not changed is the same pointer in the next
//     snapshot; so are labels that are equal, of whatever pods.
//   - What of an object cannot be understood is a Problem; the rest of it counts.
//   - Nothing ends because the API is out of reach, restarts, has forgotten what
//     it has told, or refuses: the last snapshot stands, Reason says what is
//     waited for.
//   - Only what policies need of an object outlives its decoding, and what is
//     listed again without a change is not kept twice meanwhile. A listing is
//     streamed object by object, or paged by servers that do not stream (1.30 to
//     1.33 unless WatchList is enabled), so that the whole of it is never in
//     memory. Pages come from a consistent read, for which such a server asks
//     etcd.
//
// Watching, expired resource versions and restarts of the API server are the
// business of client-go's Reflector (internal/kubeapi).
package kube
