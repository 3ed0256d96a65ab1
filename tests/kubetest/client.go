// SPDX-License-Identifier: Apache-2.0

package kubetest

import (
	"crypto/tls"
	"fmt"
	"os"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Client speaks to the API in JSON, and knows the types that tests need.
func Client(c *rest.Config) (*rest.RESTClient, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, rbacv1.AddToScheme, authenticationv1.AddToScheme, authorizationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	c = rest.CopyConfig(c)
	c.APIPath, c.GroupVersion = "/api", &corev1.SchemeGroupVersion
	c.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientFor(c)
}

// Admin may everything.
func (s *Server) Admin() *rest.Config { return s.Bearer(s.admin) }

// As is another user, whoever he is.
func (s *Server) As(user string, groups ...string) *rest.Config {
	c := s.Admin()
	c.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: groups}
	return c
}

// Kubelet is the kubelet of a node, under its name and with its rights.
func (s *Server) Kubelet(node string) *rest.Config {
	c := s.As("system:node:"+node, "system:nodes")
	c.UserAgent = "kubelet/v1.37.2 (linux/amd64) kubernetes/0000000" // the first word is the manager of the fields it writes
	return c
}

// Certificate is the server's, for who stands in front of it.
func (s *Server) Certificate() (tls.Certificate, error) {
	return tls.LoadX509KeyPair(s.certs.ServerCert, s.certs.ServerKey)
}

// Bearer is who has a token.
func (s *Server) Bearer(token string) *rest.Config {
	return &rest.Config{Host: s.URL, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAFile: s.certs.CA}, QPS: -1, Timeout: time.Minute}
}

// WriteKubeconfig writes a file with which who has the token reaches the server
// at url, its own when that is empty. An empty token is user weft's.
func (s *Server) WriteKubeconfig(path, url, token string) error {
	if url == "" {
		url = s.URL
	}
	if token == "" {
		token = s.agent
	}
	ca, err := os.ReadFile(s.certs.CA) // who reads the file may be where that one is not
	if err != nil {
		return fmt.Errorf("write kubeconfig %s: %w", path, err)
	}
	c := api.NewConfig()
	c.Clusters["c"] = &api.Cluster{Server: url, CertificateAuthorityData: ca}
	c.AuthInfos["u"] = &api.AuthInfo{Token: token}
	c.Contexts["x"] = &api.Context{Cluster: "c", AuthInfo: "u"}
	c.CurrentContext = "x"
	if err := clientcmd.WriteToFile(*c, path); err != nil {
		return fmt.Errorf("write kubeconfig %s: %w", path, err)
	}
	return nil
}
