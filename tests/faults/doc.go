// SPDX-License-Identifier: Apache-2.0

// Command weft-faults breaks weft's labs in every way that the project keeps
// a table of, while pods ping each other, and writes down what it cost: the
// packets that were lost, how long it took until all was as before, and what
// never came back. The same is done with forged VXLAN packets, which must not
// be delivered.
//
// A campaign is a lab (package netlab) of its own in which faults are injected
// one after the other; campaigns run at the same time. A fault is a script
// (see fault and scene): it waits for a lab that is well, does its damage, and
// says what has to be true again. Drift of the kernel's state is measured
// twice: with the agent hearing of it, and with the agent deaf (see deafen).
//
// `go test` runs a sample: every quick fault once.
package main
