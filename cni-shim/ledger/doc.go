// SPDX-License-Identifier: Apache-2.0

// Package ledger reads and settles what the CNI plugin and host-local wrote
// down on a node: which attachment was begun, finished or undone, and which
// address it holds. The plugin stamps and locks through it; weftd sweeps
// through it what killed calls, lost DELs and reboots left behind. It works
// on files alone: what the kernel has is the caller's to tell.
//
// # What is on disk
//
//	STATEDIR/ID:IFNAME              what ADD delegated, with a stamp (Stamp)
//	STATEDIR/.flight/ID:IFNAME.lock held by flock(2) while a call is at work
//	STATEDIR/.flight/ID:IFNAME.new  a state being written
//	ALLOCDIR/NETWORK/ADDR           host-local: "ID\r\nIFNAME" owns ADDR
//	ALLOCDIR/NETWORK/lock           held by flock(2) while host-local works
//	ALLOCDIR/NETWORK/last_reserved_ip.N
//
// Everything else there is left alone: the states of flannel's plugin, which
// bear no interface name, and whatever people put down.
//
// # Who is alive
//
// A call holds its attachment's lock from before its first effect to after its
// last one. The kernel drops a lock with the last process that has it, and the
// delegates inherit it, so a lock that can be taken says that nobody works on
// the attachment, however its processes ended. No clock is involved. With the
// lock in hand the stamp is the truth: an ADD that did not get to "added" was
// never answered, a DEL that got to "deleting" was asked for, and what was
// added lives as long as its veth does, whatever the pod does to its
// addresses. All that another boot stamped is dead.
//
// Attachments without a stamp (another plugin's, an older version's, those
// whose state was removed) are judged with more care; see judge.
//
// # How an agent uses it
//
//	l, err := ledger.Open(ledger.Options{Network: "weft"})
//	report, err := l.Sweep(ctx, kernel, leasedSubnets, time.Now())
//
// at its start and every 10 minutes. kernel answers for the network namespace
// of the node; see Kernel. The report says what was freed, for the log, and
// which living pods have an address outside the lease, which is a Problem.
package ledger
