// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"errors"
	"os"
	"testing"

	"weft.dev/weft/internal/kubeapi"
)

// A pod that has no token, for automountServiceAccountToken is false, is as
// one that is outside of the cluster: `weftd --cleanup` runs in such pods.
func TestPodWithoutToken(t *testing.T) {
	if _, err := os.Stat("/var/run/secrets/kubernetes.io/serviceaccount/token"); err == nil {
		t.Fatal("the test runs in a pod that has a token: give it none")
	}
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	_, err := New(Options{Node: "n1", NetConf: os.DevNull})
	if !errors.Is(err, kubeapi.ErrNoCredentials) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("New: %v", err)
	}
}
