// SPDX-License-Identifier: Apache-2.0

package subnet

// Domain is the product's domain: the stem of the Go module and of every
// Kubernetes name. A placeholder until the project has one of its own; this
// is the only place in the code that spells it.
const Domain = "weft.dev"

// AnnotationPrefix precedes the names of weft's Node annotations.
const AnnotationPrefix = Domain + "/"
