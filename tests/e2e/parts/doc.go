// SPDX-License-Identifier: Apache-2.0

// Package parts builds what a Kubernetes on one machine consists of, since
// there may be no registry to fetch it from: programs from their Go modules,
// whose versions and checksums are pinned in modules/, and two images.
//
// Everything lands in one cache directory outside of the repository, below a
// name that says of what version it is and a digest of all that went into it.
// A part is built once: it appears under its name only when it is complete, so
// that a build that was interrupted goes on with the part it was at. Several
// processes may use one cache at a time; one of them builds.
package parts
