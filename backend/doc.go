// SPDX-License-Identifier: Apache-2.0

// Package backend is the Linux kernel as weft uses it: a Kernel dumps and
// applies overlay state through rtnetlink, FindUnderlays picks the devices
// that carry outer packets, and Probe says what the running kernel lacks.
//
// Everything works with CAP_NET_ADMIN alone and a read-only /proc/sys. The
// package writes no sysctl, opens no raw socket and runs no program. State is
// read from the kernel each time and never remembered from earlier success.
package backend
