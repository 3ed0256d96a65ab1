// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// A cluster's certificates outlive any run and no more.
const validFor = 30 * 24 * time.Hour

// keyPair is a certificate with its key, in PEM.
type keyPair struct{ cert, key []byte }

// An authority signs the cluster's certificates. It is in memory and on the
// lab's tmpfs only.
type authority struct {
	keyPair
	certificate *x509.Certificate
	signer      *ecdsa.PrivateKey
}

// subject is what a certificate says of its holder: to Kubernetes, a user and
// its groups; to TLS, a host's names and addresses.
type subject struct {
	user   string
	groups []string
	names  []string
	addrs  []netip.Addr
}

func newAuthority() (*authority, error) {
	key, encoded, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "weft-e2e"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	a := &authority{signer: key, certificate: template}
	if a.cert, err = a.sign(template, key); err != nil {
		return nil, fmt.Errorf("make the cluster's certificate authority: %w", err)
	}
	a.key = encoded
	block, _ := pem.Decode(a.cert)
	a.certificate, err = x509.ParseCertificate(block.Bytes)
	return a, err
}

// newKey returns a fresh key, also encoded.
func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode a key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), nil
}

// issue makes a certificate that is good for both ends of a connection.
func (a *authority) issue(s subject) (keyPair, error) {
	key, encoded, err := newKey()
	if err != nil {
		return keyPair{}, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: s.user, Organization: s.groups},
		DNSNames:    s.names,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	for _, addr := range s.addrs {
		template.IPAddresses = append(template.IPAddresses, net.IP(addr.AsSlice()))
	}
	cert, err := a.sign(template, key)
	if err != nil {
		return keyPair{}, fmt.Errorf("issue a certificate to %s: %w", s.user, err)
	}
	return keyPair{cert: cert, key: encoded}, nil
}

func (a *authority) sign(template *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore = time.Now().Add(-time.Hour) // clocks are read in seconds
	template.NotAfter = time.Now().Add(validFor)
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &key.PublicKey, a.signer)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// save writes DIR/NAME.crt and DIR/NAME.key.
func (p keyPair) save(dir, name string) error {
	for _, f := range []struct {
		ext  string
		text []byte
	}{{".crt", p.cert}, {".key", p.key}} {
		if err := os.WriteFile(filepath.Join(dir, name+f.ext), f.text, 0o600); err != nil {
			return fmt.Errorf("write the certificate of %s: %w", name, err)
		}
	}
	return nil
}

// clientTLS is how to talk to the API server as the pair's holder.
func (a *authority) clientTLS(p keyPair) (*tls.Config, error) {
	cert, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}}, nil
}

// kubeconfig writes a kubeconfig with which its reader is the pair's holder.
// JSON is YAML, and []byte becomes base64 in it, as kubeconfigs want.
func (a *authority) kubeconfig(path, server string, p keyPair) error {
	type object map[string]any
	b, err := json.Marshal(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "weft-e2e",
		"clusters": []object{{"name": "weft-e2e", "cluster": object{"server": server, "certificate-authority-data": a.cert}}},
		"users":    []object{{"name": "user", "user": object{"client-certificate-data": p.cert, "client-key-data": p.key}}},
		"contexts": []object{{"name": "weft-e2e", "context": object{"cluster": "weft-e2e", "user": "user"}}},
	})
	if err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write kubeconfig %s: %w", path, err)
	}
	return nil
}
