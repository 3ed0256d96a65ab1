// SPDX-License-Identifier: Apache-2.0

// Package suite is Kubernetes' e2e suite, without the specs of what is not the
// network's: they take most of the time that the whole suite takes to build.
// Its program takes the flags of upstream's e2e.test and is used like it.
package suite
