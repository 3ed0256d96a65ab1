// SPDX-License-Identifier: Apache-2.0

// Command bench measures what weft claims about itself: from a real etcd,
// through a real weftd with the manifest's privileges, to a real kernel. Each
// size runs in a lab of its own (netlab). What the agent does is seen from
// outside: by a netlink monitor of the bench's own, by /proc, and by reading
// the kernel with other code than the agent's.
package main
