// SPDX-License-Identifier: Apache-2.0

// Package integration holds the tests that need whole nodes: real agents,
// a real etcd and real pods in a lab of namespaces (package netlab). Each
// test runs in a lab of its own, in a control process that the test starts
// from its own binary; see inLab. WEFT_FULL=1 makes the long ones as long as
// the project's promises are stated for.
package integration
