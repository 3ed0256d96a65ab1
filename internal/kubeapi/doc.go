// SPDX-License-Identifier: Apache-2.0

// Package kubeapi is how the agent talks to the Kubernetes API, whatever it
// asks for: a Conn has the credentials, makes clients that know the types of
// one API group each, keeps something in step with what is listed and watched
// (Reflect), and words what it waits for. Nothing here ends because the API is
// out of reach.
//
// client-go's typed clients and informers bring the types of every API group,
// which would be three quarters of the agent's binary; its REST client and its
// Reflector do not.
package kubeapi
