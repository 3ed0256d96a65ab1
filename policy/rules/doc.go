// SPDX-License-Identifier: Apache-2.0

// Package rules keeps a policy.Table in the kernel, as table inet weft_policy.
//
// Structure makes the table: its chains, rules and sets are always the same,
// whatever the policies are. Elements is what the sets hold; a change of policies
// or pods changes those alone. Programmer applies both, a change in one
// transaction, and remembers what it has written only to save reading it: Sync
// goes by what the kernel has.
//
// Packets are judged by their flow's conntrack entry: the source before any
// translation, the destination after it, the port of that. So the verdict on a
// reply, or on a packet in the middle of a connection, is the one on its first.
// A flow that may pass gets a label, by which its other packets pass at once.
// The number of that label is the Generation: a change that may forbid something
// takes the next one, so that every flow is judged once more. Labels of flows
// are all taken to be weft's. Flows that are older than the table cannot be
// labelled, nor can any while there is no Generation: each packet of theirs is
// judged.
//
// What is in the node's subnets and is no known pod's is let in nowhere.
// Packets that conntrack cannot tell the flow of are dropped where their header
// names an isolated pod, on that side on which it is isolated. Neighbour
// discovery always passes.
package rules
