// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"weft.dev/weft/subnet"
)

// TestRender compares 12 configurations on nodes with 4 leases against
// expectations that were written by hand from the rules in render's comment:
// testdata/want/NN-LEASE.json is what the delegate gets, or the error.
func TestRender(t *testing.T) {
	confs, err := filepath.Glob("testdata/conf/*.json")
	if err != nil {
		t.Fatal(err)
	}
	leases, err := filepath.Glob("testdata/env/*.env")
	if err != nil {
		t.Fatal(err)
	}
	if len(confs) != 12 || len(leases) != 4 {
		t.Fatalf("testdata holds %d configurations and %d leases, want 12 and 4", len(confs), len(leases))
	}
	for _, conf := range confs {
		for _, lease := range leases {
			number, _, _ := strings.Cut(filepath.Base(conf), "-")
			name := number + "-" + strings.TrimSuffix(filepath.Base(lease), ".env")
			t.Run(name, func(t *testing.T) {
				c, err := parseNetConf(readFile(t, conf))
				if err != nil {
					t.Fatal(err)
				}
				env, err := subnet.ParseSubnetEnv(readFile(t, lease), lease)
				if err != nil {
					t.Fatal(err)
				}
				got, err := render(c, env)
				compare(t, got, err, readFile(t, "testdata/want/"+name+".json"))
			})
		}
	}
}

// compare holds a rendering against an expectation: JSON documents are equal
// when they say the same; of an error, code and message count.
func compare(t *testing.T, got []byte, err error, want []byte) {
	t.Helper()
	if err != nil {
		e := asError(t, err)
		b, err := json.Marshal(map[string]any{"error": map[string]any{"code": e.Code, "msg": e.Msg}})
		if err != nil {
			t.Fatal(err)
		}
		got = b
	}
	if !reflect.DeepEqual(decode(t, got), decode(t, want)) {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

// TestRenderDoesNotTouchItsInput guards against a rendering that writes into
// the maps of the configuration it was given.
func TestRenderDoesNotTouchItsInput(t *testing.T) {
	data := readFile(t, "testdata/conf/09-precedence.json")
	c, err := parseNetConf(data)
	if err != nil {
		t.Fatal(err)
	}
	env, err := subnet.ReadSubnetEnv("testdata/env/dual.env")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := render(c, env); err != nil {
		t.Fatal(err)
	}
	fresh, err := parseNetConf(data)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c, fresh) {
		t.Errorf("render changed the configuration\nfrom %v\nto   %v", fresh, c)
	}
}

// TestRefused lists what a configuration may not say: each error names the
// field, its value and what is allowed.
func TestRefused(t *testing.T) {
	const head = `{"cniVersion": "1.0.0", "name": "weft", "type": "weft", `
	for _, c := range []struct {
		name, conf string
		code       uint
		msg        []string
	}{
		{"delegate type is a number", head + `"delegate": {"type": 5}}`, 7, []string{"delegate.type is 5", `"bridge"`}},
		{"delegate type is empty", head + `"delegate": {"type": ""}}`, 7, []string{`delegate.type is ""`, `"bridge"`}},
		{"delegate type is a path", head + `"delegate": {"type": "../bridge"}}`, 7, []string{`delegate.type is "../bridge"`, "file name"}},
		{"delegate is this plugin", head + `"delegate": {"type": "weft"}}`, 7, []string{`delegate.type is "weft"`, "itself"}},
		{"delegate is a list", head + `"delegate": []}`, 7, []string{"delegate is []", "object"}},
		{"delegate name in another spelling", head + `"delegate": {"NAME": "x"}}`, 7, []string{`delegate.name is "x"`}},
		{"delegate ipam in another spelling", head + `"delegate": {"Ipam": {}}}`, 7, []string{"delegate.ipam is {}"}},
		{"ipam is a string", head + `"ipam": "host-local"}`, 7, []string{`ipam is "host-local"`, "object"}},
		{"ipam type is empty", head + `"ipam": {"type": ""}}`, 7, []string{`ipam.type is ""`, `"host-local"`}},
		{"ipam type is a list", head + `"ipam": {"type": ["host-local"]}}`, 7, []string{"ipam.type is [", `"host-local"`}},
		{"ipam with a range of the older form", head + `"ipam": {"subnet": "10.0.0.0/8"}}`, 7, []string{`ipam.subnet is "10.0.0.0/8"`, "lease"}},
		{"routes are an object", head + `"ipam": {"routes": {"dst": "10.0.0.0/8"}}}`, 7, []string{"ipam.routes is {", "array"}},
		{"route without destination", head + `"ipam": {"routes": [{"dst": "10.0.0.0/8"}, {"gw": "10.0.0.1"}]}}`, 7, []string{"ipam.routes[1] is {", "dst"}},
		{"route to no prefix", head + `"ipam": {"routes": [{"dst": "10.0.0.0"}]}}`, 7, []string{"ipam.routes[0] is {", "10.0.0.0"}},
		{"route is null", head + `"ipam": {"routes": [null]}}`, 7, []string{"ipam.routes[0] is null"}},
		{"subnetFile is relative", head + `"subnetFile": "subnet.env"}`, 7, []string{`subnetFile is "subnet.env"`, "absolute", defaultSubnetFile}},
		{"subnetFile is empty", head + `"subnetFile": ""}`, 7, []string{`subnetFile is ""`, "absolute"}},
		{"dataDir is a number", head + `"dataDir": 7}`, 7, []string{"dataDir is 7", defaultDataDir}},
		{"agentSocket is a list", head + `"agentSocket": []}`, 7, []string{"agentSocket is []", defaultAgentSocket}},
		{"agentSocket is too long", head + `"agentSocket": "/` + strings.Repeat("x", 107) + `"}`, 7, []string{"agentSocket is ", "108 bytes", "at most 107"}},
		{"args are a string", head + `"args": "K=V"}`, 7, []string{`args is "K=V"`, "object"}},
		{"dns is a list", head + `"dns": ["10.43.0.10"]}`, 7, []string{"dns is [", "object"}},
		{"runtimeConfig is true", head + `"runtimeConfig": true}`, 7, []string{"runtimeConfig is true", "object"}},
		{"prevResult is a number", head + `"prevResult": 1}`, 7, []string{"prevResult is 1", "object"}},
		{"name is a number", `{"cniVersion": "1.0.0", "name": 1, "type": "weft"}`, 7, []string{"name is 1", "string"}},
		{"name leaves its directory", `{"cniVersion": "1.0.0", "name": "../weft", "type": "weft"}`, 7, []string{`name is "../weft"`}},
		{"a long value is cut", head + `"args": "` + strings.Repeat("x", 5000) + `"}`, 7, []string{"xxx...: want an object"}},
		{"not an object", `[]`, 6, []string{"network configuration"}},
		{"not JSON", `{`, 6, []string{"network configuration"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf, err := parseNetConf([]byte(c.conf))
			if err == nil {
				_, err = render(conf, placeholderEnv())
			}
			e := asError(t, err)
			if e.Code != c.code {
				t.Errorf("code %d, want %d (%s)", e.Code, c.code, e.Msg)
			}
			for _, part := range c.msg {
				if !strings.Contains(e.Msg, part) {
					t.Errorf("message %q does not say %q", e.Msg, part)
				}
			}
			if len(e.Msg) > 400 {
				t.Errorf("message has %d bytes", len(e.Msg))
			}
		})
	}
}

// TestNullIsAbsent: templates leave null where a value is not set.
func TestNullIsAbsent(t *testing.T) {
	c, err := parseNetConf([]byte(`{"cniVersion": "1.0.0", "name": "weft", "type": "weft",
		"subnetFile": null, "dataDir": null, "agentSocket": null, "runtimeConfig": null,
		"dns": null, "args": null, "prevResult": null, "ipam": null,
		"delegate": {"type": null, "name": null, "ipam": null, "mtu": null, "isGateway": null}}`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := render(c, leaseOf(t, "v4"))
	compare(t, got, err, readFile(t, "testdata/want/01-v4.json"))
}

// TestLeaseWithoutSubnet: the caller may try again, and nothing is delegated.
func TestLeaseWithoutSubnet(t *testing.T) {
	_, err := render(netConf{CNIVersion: "1.0.0", Name: "weft"}, subnet.SubnetEnv{MTU: 1450})
	if e := asError(t, err); e.Code != types.ErrTryAgainLater {
		t.Errorf("code %d, want %d", e.Code, types.ErrTryAgainLater)
	}
}

func asError(t *testing.T, err error) *types.Error {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) {
		t.Fatalf("got %v (%T), want a CNI error", err, err)
	}
	return e
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func leaseOf(t testing.TB, name string) subnet.SubnetEnv {
	t.Helper()
	env, err := subnet.ReadSubnetEnv("testdata/env/" + name + ".env")
	if err != nil {
		t.Fatal(err)
	}
	return env
}

// decode reads one JSON document and keeps numbers as they are spelled.
func decode(t testing.TB, data []byte) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	return v
}
