// SPDX-License-Identifier: Apache-2.0

// Package data measures the data path: pods through weft beside their nodes
// without it, and beside pods whose nodes were programmed by hand the way
// flannel does. All stand in one lab, with wires of the same kind, and are
// measured in turn, so that what the machine does meanwhile befalls all of
// them. Traffic comes from this program, started again in each place.
package data
