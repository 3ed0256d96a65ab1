// SPDX-License-Identifier: Apache-2.0

//go:build parts

// Package kubernetes pins what the e2e harness builds of Kubernetes. The
// programs are tools of go.mod; the e2e suite is the test of a package, which
// cannot be one, so that it is imported here. The build tag is never set.
package kubernetes

import _ "k8s.io/kubernetes/test/e2e"
