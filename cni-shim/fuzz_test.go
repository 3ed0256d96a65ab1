// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"weft.dev/weft/subnet"
)

// seedConfs gives a fuzz target the configurations of the rendering test.
func seedConfs(f *testing.F, add func(conf []byte)) {
	confs, err := filepath.Glob("testdata/conf/*.json")
	if err != nil || confs == nil {
		f.Fatalf("no seeds: %v", err)
	}
	for _, path := range confs {
		add(readFile(f, path))
	}
}

// FuzzNetConf: whatever a runtime passes, the answer is a configuration whose
// paths are absolute or a CNI error of code 6 or 7.
func FuzzNetConf(f *testing.F) {
	seedConfs(f, func(conf []byte) { f.Add(conf) })
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseNetConf(data)
		if err != nil {
			e := asError(t, err)
			if e.Code == types.ErrDecodingFailure {
				return
			}
			if e.Code != types.ErrInvalidNetworkConfig {
				t.Errorf("code %d: %s", e.Code, e.Msg)
			}
		}
		for _, p := range []string{c.SubnetFile, c.DataDir, c.AgentSocket} {
			if !filepath.IsAbs(p) {
				t.Errorf("path %q is not absolute", p)
			}
		}
		if c.Name == "" && err == nil {
			t.Error("no name")
		}
	})
}

// FuzzRender: a delegate's configuration is valid JSON that a plugin decodes
// to the network's name and version, another plugin's type, and exactly the
// lease's ranges, however the user spelled his fields; and DEL always finds
// something to delegate.
func FuzzRender(f *testing.F) {
	envs := [][]byte{
		readFile(f, "testdata/env/v4.env"), readFile(f, "testdata/env/v6.env"),
		readFile(f, "testdata/env/dual.env"), readFile(f, "testdata/env/multi.env"),
		[]byte("FLANNEL_NETWORK=10.42.0.0/16\nFLANNEL_SUBNET=10.42.1.1/24\nFLANNEL_MTU\n"),
	}
	for _, env := range envs {
		seedConfs(f, func(conf []byte) { f.Add(conf, env) })
	}
	f.Fuzz(func(t *testing.T, data, lease []byte) {
		env, err := subnet.ParseSubnetEnv(lease, "subnet.env")
		if err != nil {
			env = placeholderEnv()
		}
		c, _ := parseNetConf(data) // what is right of it
		rendered, err := render(c, env)
		if err == nil {
			checkRendered(t, rendered, c, env)
		} else {
			asError(t, err)
		}
		c.SubnetFile = "/nonexistent/subnet.env"
		rendered, err = renderForDel(c)
		if err != nil {
			t.Fatalf("DEL has nothing to delegate: %v", err)
		}
		checkRendered(t, rendered, c, placeholderEnv())
	})
}

// checkRendered reads a rendering as the reference plugins would.
func checkRendered(t *testing.T, rendered []byte, c netConf, env subnet.SubnetEnv) {
	t.Helper()
	var d struct {
		CNIVersion string `json:"cniVersion"`
		Name       string `json:"name"`
		Type       string `json:"type"`
		IPAM       struct {
			Type   string `json:"type"`
			Ranges [][]struct {
				Subnet netip.Prefix `json:"subnet"`
			} `json:"ranges"`
			Routes []types.Route `json:"routes"`
		} `json:"ipam"`
	}
	if err := json.Unmarshal(rendered, &d); err != nil {
		t.Fatalf("%v in %s", err, rendered)
	}
	if d.Name != c.Name || d.CNIVersion != c.CNIVersion || d.Type == "" || d.Type == c.Type || d.IPAM.Type == "" {
		t.Errorf("identity is lost in %s", rendered)
	}
	var got, want []netip.Prefix
	for _, set := range d.IPAM.Ranges {
		for _, r := range set {
			got = append(got, r.Subnet)
		}
	}
	for _, p := range env.Subnets {
		want = append(want, p.Masked())
	}
	if !slices.Equal(got, want) {
		t.Errorf("ranges %v, want %v", got, want)
	}
	if len(d.IPAM.Routes) < len(env.Networks) {
		t.Errorf("%d routes for %d networks", len(d.IPAM.Routes), len(env.Networks))
	}
	if delegateType(rendered) != d.Type {
		t.Errorf("delegateType says %q, want %q", delegateType(rendered), d.Type)
	}
}

// FuzzAgentAnswer: whatever listens on the agent's socket, the answer is a
// status or an error.
func FuzzAgentAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"ready\":true}"))
	f.Add([]byte("HTTP/1.0 503 Service Unavailable\r\n\r\n{\"ready\":false,\"reason\":\"waiting for etcd\"}"))
	f.Add([]byte("SSH-2.0-x\r\n"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		st, err := readStatus(bufio.NewReader(bytes.NewReader(answer)), "/run/x.sock")
		if (err == nil) != (st.Ready != nil) {
			t.Errorf("ready %v with error %v", st.Ready, err)
		}
		if err != nil && len(err.Error()) > 1000 {
			t.Errorf("error has %d bytes", len(err.Error()))
		}
	})
}

// FuzzValid: whatever list a runtime passes to GC, it is read in full or
// refused with code 6 or 7, never taken for a shorter one.
func FuzzValid(f *testing.F) {
	for _, seed := range []string{`{}`, `{"cni.dev/valid-attachments":null}`, `{"cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]}`,
		`{"cni.dev/valid-attachments":[5]}`, `{"CNI.dev/valid-attachments":[]}`, `[]`, `null`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		valid, err := parseValid(data)
		if err != nil {
			if e := asError(t, err); e.Code != types.ErrDecodingFailure && e.Code != types.ErrInvalidNetworkConfig {
				t.Errorf("code %d: %s", e.Code, e.Msg)
			}
			return
		}
		var conf map[string]json.RawMessage
		if err := json.Unmarshal(data, &conf); err != nil || conf[validKey] == nil {
			t.Fatalf("a list is read from %s", data)
		}
		var list []map[string]any
		if err := json.Unmarshal(conf[validKey], &list); err != nil {
			t.Fatalf("a list is read from %s", data)
		}
		ids := map[string]bool{}
		for k := range valid {
			ids[k.ContainerID] = true
		}
		if len(list) > 0 && len(ids) == 0 {
			t.Errorf("%s is read as empty", data)
		}
	})
}

// FuzzNSID: whatever the kernel answers, it is an id or an error.
func FuzzNSID(f *testing.F) {
	f.Add([]byte{28, 0, 0, 0, 88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 1, 0, 5, 0, 0, 0})
	f.Add([]byte{20, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xef, 0xff, 0xff, 0xff})
	f.Add([]byte{28, 0, 0, 0, 88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, 0, 5, 0, 0, 0})
	f.Fuzz(func(t *testing.T, answer []byte) {
		if id, err := parseNSID(answer); err != nil && id != -1 {
			t.Errorf("id %d with error %v", id, err)
		}
	})
}
