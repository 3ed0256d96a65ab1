// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// FuzzKey: a name that parses is the name of its key, one file in one
// directory.
func FuzzKey(f *testing.F) {
	for _, name := range []string{"c1:eth0", "c1", ":", "a:b:c", "../x:y", "c1:..", "c1:a b", ".flight", "c1:eth0.lock", strings.Repeat("x", 300) + ":eth0"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		k, ok := ParseKey(name)
		s, err := StateOf("/d", k)
		if ok != (err == nil) {
			t.Fatalf("%q: parses %v, yet state %v", name, ok, err)
		}
		if !ok {
			return
		}
		if k.String() != name || s.Path() != "/d/"+name || filepath.Dir(s.temp()) != "/d/"+flightDir || len(filepath.Base(s.temp())) > 255 {
			t.Errorf("%q gives %v, %s, %s", name, k, s.Path(), s.temp())
		}
	})
}

// FuzzAllocation: files of host-local are read as host-local writes them, and
// anything else is left alone.
func FuzzAllocation(f *testing.F) {
	for _, seed := range [][2]string{
		{"10.42.1.2", "c1\r\neth0"}, {"fd00:42:0:1::2", "c1"}, {"10.42.1.2", ""}, {"lock", ""}, {"last_reserved_ip.0", "10.42.1.2"},
		{"010.42.1.2", "c1\r\neth0"}, {"FD00::1", ""}, {"fe80::1%eth0", ""}, {"::ffff:10.0.0.1", "c1"}, {"10.42.1.2", "reserved by bob"}, {"10.42.1.2", "c1\r\n../x"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, name, content string) {
		if a, ok := parseAddr(name); ok {
			if ip := net.ParseIP(name); ip == nil || ip.String() != name || a.String() != name {
				t.Errorf("host-local would not write %q, read as %v", name, a)
			}
		}
		k, ok := parseOwner(content)
		trimmed := strings.TrimSpace(content)
		switch {
		case !ok:
			return
		case k == Key{}:
			if trimmed != "" {
				t.Errorf("%q belongs to nobody", content)
			}
		case k.IfName == "":
			if trimmed != k.ContainerID {
				t.Errorf("%q belongs to %v", content, k)
			}
		default: // as its DEL compares (backend/disk ReleaseByID)
			if trimmed != k.ContainerID+"\r\n"+k.IfName || !k.valid() {
				t.Errorf("%q belongs to %v", content, k)
			}
		}
	})
}

// FuzzState: a state of any content is read without harm; one that has a stamp
// keeps it and its configuration through writing and reading.
func FuzzState(f *testing.F) {
	for _, seed := range []string{savedConf, "", "null", "[]", `{"type":5}`, `{"type":"bridge","ipam":5}`, `{"` + StampKey + `":null}`,
		`{"type":"bridge","` + StampKey + `":{"phase":"added","boot":"b","ports":["veth01234567"],"addrs":["10.42.1.2"],"netnsID":3}}`,
		`{"type":"bridge","` + StampKey + `":{"phase":"added","boot":"b","addrs":["x"]}}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		conf, stamp, stamped, err := Decode(data)
		if err != nil {
			return
		}
		delegationOf(conf)
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(conf, &fields); err != nil {
			t.Fatalf("the configuration is no object: %v", err)
		}
		if !stamped {
			return
		}
		if _, ok := fields[StampKey]; ok {
			t.Errorf("the stamp is in the configuration: %s", conf)
		}
		again, err := Encode(conf, stamp)
		if err != nil {
			t.Fatal(err)
		}
		conf2, stamp2, stamped2, err := Decode(again)
		third, err2 := Encode(conf2, stamp2)
		if err != nil || err2 != nil || !stamped2 || string(again) != string(third) || string(conf) != string(conf2) {
			t.Errorf("%s %+v became %s %+v, %v %v", conf, stamp, conf2, stamp2, stamped2, err)
		}
	})
}
