// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestOptionsDefaults(t *testing.T) {
	s, err := New(Options{Endpoints: []string{"127.0.0.1:2379"}, Prefix: "/weft/network/"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.o.LeaseTTL != 24*time.Hour || s.o.RenewMargin != time.Hour || s.o.CallTimeout != 5*time.Second || s.o.AuditEvery != 10*time.Minute {
		t.Errorf("TTL %s, margin %s, timeout %s, audit %s", s.o.LeaseTTL, s.o.RenewMargin, s.o.CallTimeout, s.o.AuditEvery)
	}
	if s.configKey() != "/weft/network/config" || s.subnetsKey() != "/weft/network/subnets/" {
		t.Errorf("keys %s, %s", s.configKey(), s.subnetsKey())
	}
	if s.Reason() != "" {
		t.Errorf("reason %q", s.Reason())
	}
}

func TestOptionsRefused(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk.pem")
	if err := os.WriteFile(junk, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    Options
		want []string
	}{
		"no endpoint":           {Options{}, []string{"--etcd-endpoints"}},
		"plaintext beyond":      {Options{Endpoints: []string{"http://192.0.2.1:2379"}}, []string{"http://192.0.2.1:2379", "--etcd-insecure", "https://"}},
		"bare host beyond":      {Options{Endpoints: []string{"192.0.2.1:2379"}}, []string{"http://192.0.2.1:2379", "--etcd-insecure"}},
		"name is not loopback":  {Options{Endpoints: []string{"http://localhost.example:2379"}}, []string{"--etcd-insecure"}},
		"second beyond":         {Options{Endpoints: []string{"http://127.0.0.1:2379", "http://[2001:db8::1]:2379"}}, []string{"http://[2001:db8::1]:2379", "--etcd-insecure"}},
		"mixed":                 {Options{Endpoints: []string{"http://127.0.0.1:2379", "https://192.0.2.1:2379"}}, []string{"http://127.0.0.1:2379", "https://192.0.2.1:2379"}},
		"http with CA":          {Options{Endpoints: []string{"http://127.0.0.1:2379"}, CAFile: "ca"}, []string{"http://127.0.0.1:2379", "https://127.0.0.1:2379"}},
		"scheme":                {Options{Endpoints: []string{"ftp://127.0.0.1:2379"}}, []string{"ftp", "http, https or unix"}},
		"no port":               {Options{Endpoints: []string{"https://127.0.0.1"}}, []string{"HOST:PORT"}},
		"path":                  {Options{Endpoints: []string{"https://127.0.0.1:2379/v3"}}, []string{"/v3", "HOST:PORT"}},
		"user in URL":           {Options{Endpoints: []string{"https://weft:secret@192.0.2.1:2379"}}, []string{"--etcd-username"}},
		"certificate alone":     {Options{Endpoints: []string{"127.0.0.1:2379"}, CertFile: "/c.pem"}, []string{"/c.pem", "--etcd-keyfile"}},
		"key alone":             {Options{Endpoints: []string{"127.0.0.1:2379"}, KeyFile: "/k.pem"}, []string{"/k.pem", "--etcd-certfile"}},
		"user alone":            {Options{Endpoints: []string{"127.0.0.1:2379"}, Username: "weft"}, []string{"weft", "--etcd-password"}},
		"password alone":        {Options{Endpoints: []string{"127.0.0.1:2379"}, Password: "secret"}, []string{"--etcd-username"}},
		"CA missing":            {Options{Endpoints: []string{"127.0.0.1:2379"}, CAFile: filepath.Join(dir, "none")}, []string{"--etcd-cafile", "none"}},
		"CA junk":               {Options{Endpoints: []string{"127.0.0.1:2379"}, CAFile: junk}, []string{"--etcd-cafile", junk}},
		"pair junk":             {Options{Endpoints: []string{"127.0.0.1:2379"}, CertFile: junk, KeyFile: junk}, []string{junk}},
		"TTL too short":         {Options{Endpoints: []string{"127.0.0.1:2379"}, LeaseTTL: time.Millisecond}, []string{"1ms", "1s", "8760h"}},
		"TTL not whole":         {Options{Endpoints: []string{"127.0.0.1:2379"}, LeaseTTL: 1500 * time.Millisecond}, []string{"1.5s", "whole seconds"}},
		"margin not below TTL":  {Options{Endpoints: []string{"127.0.0.1:2379"}, LeaseTTL: time.Minute, RenewMargin: time.Minute}, []string{"1m0s"}},
		"margin negative":       {Options{Endpoints: []string{"127.0.0.1:2379"}, RenewMargin: -1}, []string{"-1ns"}},
		"audit negative":        {Options{Endpoints: []string{"127.0.0.1:2379"}, AuditEvery: -1}, []string{"-1ns"}},
		"call timeout negative": {Options{Endpoints: []string{"127.0.0.1:2379"}, CallTimeout: -1}, []string{"-1ns"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(c.o)
			if err == nil {
				t.Fatal("accepted")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q does not say %q", err, w)
				}
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("error %q shows a password", err)
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	for text, want := range map[string]struct {
		plain, files endpoint // without and with TLS files
	}{
		"127.0.0.1:2379":         {endpoint{url: "http://127.0.0.1:2379"}, endpoint{url: "https://127.0.0.1:2379", secure: true}},
		"192.0.2.1:2379":         {endpoint{url: "http://192.0.2.1:2379", exposed: true}, endpoint{url: "https://192.0.2.1:2379", secure: true}},
		"[::1]:2379":             {endpoint{url: "http://[::1]:2379"}, endpoint{url: "https://[::1]:2379", secure: true}},
		"localhost:2379":         {endpoint{url: "http://localhost:2379"}, endpoint{url: "https://localhost:2379", secure: true}},
		"https://etcd.test:2379": {endpoint{url: "https://etcd.test:2379", secure: true}, endpoint{url: "https://etcd.test:2379", secure: true}},
		"https://127.0.0.1:99/":  {endpoint{url: "https://127.0.0.1:99", secure: true}, endpoint{url: "https://127.0.0.1:99", secure: true}},
		"unix:///run/etcd.sock":  {endpoint{url: "unix:///run/etcd.sock"}, endpoint{url: "unix:///run/etcd.sock"}},
	} {
		for _, files := range []bool{false, true} {
			got, err := parseEndpoint(text, files)
			expected := want.plain
			if files {
				expected = want.files
			}
			if err != nil || got != expected {
				t.Errorf("%s with TLS files %t: %+v, %v; want %+v", text, files, got, err, expected)
			}
		}
	}
}

func TestInsecureIsAStandingProblem(t *testing.T) {
	s, err := New(Options{Endpoints: []string{"http://192.0.2.1:2379"}, Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if ps := s.plaintext(); len(ps) != 1 || ps[0].Object != "http://192.0.2.1:2379" {
		t.Errorf("problems %v", ps)
	}
}

// writeCert writes a self-signed pair and returns its paths.
func writeCert(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
	for path, block := range map[string]*pem.Block{
		cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}

func TestTLSConfig(t *testing.T) {
	dir := t.TempDir()
	cert, key := writeCert(t, dir, "a")
	for name, c := range map[string]struct {
		o           Options
		roots       bool
		certificate bool
	}{
		"CA alone":          {Options{CAFile: cert}, true, false},
		"certificate alone": {Options{CertFile: cert, KeyFile: key}, false, true},
		"both":              {Options{CAFile: cert, CertFile: cert, KeyFile: key}, true, true},
		"https alone":       {Options{}, false, false},
	} {
		got, err := c.o.tlsConfig()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if (got.RootCAs != nil) != c.roots || (len(got.Certificates) == 1) != c.certificate {
			t.Errorf("%s: roots %t, certificate %t", name, got.RootCAs != nil, len(got.Certificates) == 1)
		}
		if got.MinVersion != tls.VersionTLS12 || got.InsecureSkipVerify {
			t.Errorf("%s: minimum version %x, skips verification %t", name, got.MinVersion, got.InsecureSkipVerify)
		}
	}
}
