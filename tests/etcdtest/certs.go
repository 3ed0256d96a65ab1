// SPDX-License-Identifier: Apache-2.0

package etcdtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Certs are the paths of a private CA and of what it signed, PEM: a server on
// loopback and a client.
type Certs struct {
	CA                    string
	ServerCert, ServerKey string
	ClientCert, ClientKey string
}

// NewCerts makes a CA of its own for the length of a test.
func NewCerts(t testing.TB) *Certs {
	t.Helper()
	c, err := MakeCerts(t.TempDir(), netip.MustParseAddr("127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// MakeCerts makes a CA of its own in dir, whose server is at addr.
func MakeCerts(dir string, addr netip.Addr) (*Certs, error) {
	ca, err := newAuthority()
	if err != nil {
		return nil, err
	}
	c := &Certs{CA: filepath.Join(dir, "ca.pem")}
	if err := write(c.CA, "CERTIFICATE", ca.der); err != nil {
		return nil, err
	}
	c.ServerCert, c.ServerKey, err = ca.issue(dir, "server", &x509.Certificate{
		Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{addr.AsSlice()}, DNSNames: []string{"localhost"},
		// A server with client certificates on is its own client in etcd's gateway.
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, err
	}
	c.ClientCert, c.ClientKey, err = ca.issue(dir, "client", &x509.Certificate{
		Subject: pkix.Name{CommonName: "client"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return c, err
}

// authority is a CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	der  []byte
}

func newAuthority() (*authority, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	a := &authority{key: key, cert: &x509.Certificate{
		Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}}
	a.der, err = a.sign(a.cert, key)
	return a, err
}

// issue writes a certificate like leaf, and its key, to files in dir.
func (a *authority) issue(dir, name string, leaf *x509.Certificate) (cert, key string, err error) {
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
	k, err := newKey()
	if err != nil {
		return cert, key, err
	}
	signed, err := a.sign(leaf, k)
	if err != nil {
		return cert, key, err
	}
	der, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		return cert, key, err
	}
	return cert, key, errors.Join(write(cert, "CERTIFICATE", signed), write(key, "EC PRIVATE KEY", der))
}

// sign completes leaf, whose key is key.
func (a *authority) sign(leaf *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	leaf.SerialNumber = serial
	leaf.NotBefore, leaf.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	return x509.CreateCertificate(rand.Reader, leaf, a.cert, &key.PublicKey, a.key)
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func write(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
