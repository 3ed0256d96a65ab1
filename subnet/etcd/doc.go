// SPDX-License-Identifier: Apache-2.0

// Package etcd keeps leases in etcd (API v3, server 3.4 and later), under
// keys and values that flannel reads and writes too:
//
//	<prefix>/config            the network's configuration (net-conf.json)
//	<prefix>/subnets/<key>     one lease; the key spells its subnets
//
// What the package promises:
//
//   - Two nodes never hold overlapping subnets. A new key is written by a
//     transaction that fails when any key was created since the listing it
//     was chosen from, so that overlaps are excluded, not only equal keys.
//   - A lease is renewed by keeping its etcd lease alive and then looking
//     whether the key is still ours. No key is ever overwritten blindly: a
//     node that slept past its time to live finds its key gone (and takes it
//     back) or someone else's (and says so).
//   - An etcd restored from a backup is seen as such: nodes put back what they
//     hold, and a watcher keeps what it has until they had the time to.
//   - A key without an etcd lease is a reservation and stays one.
//   - A key or value that does not parse concerns that one peer only.
//   - Every call has a deadline; waiting is endless and says why (Reason).
package etcd
