// SPDX-License-Identifier: Apache-2.0

// Package subnet holds the vocabulary of the control plane and its codecs:
// what a lease is, what the network's configuration is, how both look in
// etcd, in Node annotations and in subnet.env, and the pure allocator that
// picks a free subnet.
//
// The package does no I/O apart from reading and writing subnet.env, and
// imports nothing else of weft. The address family is always a value
// (see Family), never part of a function's name.
package subnet
