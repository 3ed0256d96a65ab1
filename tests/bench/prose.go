// SPDX-License-Identifier: Apache-2.0

package main

// preamble is the beginning of docs/benchmarks.md: how the figures were made.
const preamble = `# Benchmarks

` + "`make bench`" + ` measures what is here and writes this page. A real etcd holds the leases of peers that do not exist; a real
weftd with the manifest's privileges starts on a node of a lab (network namespaces on one machine) and programs a real
kernel. What it does is seen from outside: a netlink monitor that shares no code with the agent stamps every route,
neighbour and forwarding entry that comes; /proc tells CPU time and memory; ip, bridge and nft count the entries. A write
that changes nothing makes no event, so rewrites are also counted by the age at which the kernel confirmed each neighbour.

Times include whatever else the machine did. The nearest peer is flannel v0.28.9, measured on a machine of the same class
with IPv4 only; it was not run beside these figures.

Command: ` + "`%s`" + `; %s; %d CPUs, Linux %s, %s.
`
