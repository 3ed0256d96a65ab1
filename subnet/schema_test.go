// SPDX-License-Identifier: Apache-2.0

package subnet

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

type example struct {
	name string
	data []byte
}

// exampleConfigs reads the examples; those of flannel are named so.
func exampleConfigs(t testing.TB) []example {
	t.Helper()
	files, err := filepath.Glob("testdata/net-conf/*.json")
	if err != nil || len(files) < 7 {
		t.Fatalf("%d examples, %v; want at least 7", len(files), err)
	}
	var all []example
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, example{filepath.Base(f), data})
	}
	return all
}

func compiledSchema(t testing.TB) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(ConfigSchema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("net-conf.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("net-conf.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func validate(t testing.TB, s *jsonschema.Schema, data []byte) error {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return err
	}
	return s.Validate(doc)
}

func TestExampleConfigs(t *testing.T) {
	s := compiledSchema(t)
	for _, e := range exampleConfigs(t) {
		if err := validate(t, s, e.data); err != nil {
			t.Errorf("%s: schema: %v", e.name, err)
		}
		c, err := ParseConfig(e.data, e.name, Defaults{Flannel: strings.HasPrefix(e.name, "flannel")})
		if err != nil {
			t.Errorf("parser: %v", err)
			continue
		}
		checkConfig(t, c)
	}
}

// The schema and the parser agree on these, with weft's defaults where subnets
// come with the node.
func TestSchemaAgreesWithParser(t *testing.T) {
	const n4, n6 = `"Network": "10.0.0.0/8"`, `"IPv6Network": "fd00::/48"`
	s := compiledSchema(t)
	for _, v := range []struct {
		text string
		good bool
	}{
		{`{` + n4 + `}`, true},
		{`{` + n6 + `}`, true},
		{`{` + n4 + `,` + n6 + `}`, true},
		{`{` + n4 + `, "IPv6Network": null}`, true},
		{`{` + n4 + `, "Unknown": [], "EnableNFTables": true}`, true},
		{`{` + n4 + `, "EnableIPv4": true, "EnableIPv6": false}`, true},
		{`{` + n4 + `,` + n6 + `, "EnableIPv4": false}`, true},
		{`{` + n4 + `,` + n6 + `, "EnableIPv4": null, "EnableIPv6": null}`, true},
		{`{` + n4 + `, "IPv6Network": "::/0", "EnableIPv6": false}`, true},
		{`{` + n4 + `, "SubnetLen": 0, "SubnetMin": "0.0.0.0"}`, true},
		{`{` + n4 + `, "SubnetLen": 30, "SubnetMin": "10.0.0.4", "SubnetMax": "10.255.255.252"}`, true},
		{`{` + n6 + `, "IPv6SubnetLen": 126, "IPv6SubnetMin": "fd00::4", "IPv6SubnetMax": "FD00::8"}`, true},
		{`{` + n4 + `, "SubnetLen": null, "SubnetMin": null, "Backend": null}`, true},
		{`{` + n4 + `, "Backend": {}}`, true},
		{`{` + n4 + `, "Backend": {"Type": "vxlan", "VNI": 1, "Port": 1, "MTU": 576}}`, true},
		{`{` + n4 + `, "Backend": {"Type": "Host-Gw", "VNI": 16777215, "Port": 65535, "MTU": 65535}}`, true},
		{`{` + n4 + `, "Backend": {"Port": 0, "MTU": 0, "GBP": true, "Learning": false, "DirectRouting": null}}`, true},
		{`{` + n4 + `, "Backend": {"Type": null, "VNI": null, "MTU": null, "More": 1}}`, true},
		{`{}`, true},
		{`{"Network": null}`, true},
		{`{` + n4 + `, "EnableIPv4": false}`, true},
		{`{` + n4 + `, "EnableIPv6": true}`, true},
		{`{` + n6 + `, "EnableIPv4": true}`, true},
		{`{` + n6 + `, "EnableIPv4": true, "Network": null}`, true},
		{`{"EnableIPv4": false, "EnableIPv6": null}`, true},

		{`null`, false},
		{`{"EnableIPv4": false, "EnableIPv6": false}`, false},
		{`[]`, false},
		{`{"Network": 10}`, false},
		{`{"Network": ""}`, false},
		{`{"Network": "10.0.0.0"}`, false},
		{`{"Network": "10.0.0/8"}`, false},
		{`{"Network": "010.0.0.0/8"}`, false},
		{`{"Network": "10.0.0.256/8"}`, false},
		{`{"Network": "10.0.0.0/33"}`, false},
		{`{"Network": "10.0.0.0/08"}`, false},
		{`{"Network": "fd00::/48"}`, false},
		{`{"IPv6Network": "10.0.0.0/8"}`, false},
		{`{"IPv6Network": "fd00::/129"}`, false},
		{`{"IPv6Network": "fd00::"}`, false},
		{`{"IPv6Network": "fd0g::/48"}`, false},
		{`{` + n4 + `,` + n6 + `, "EnableIPv4": false, "EnableIPv6": false}`, false},
		{`{` + n4 + `, "EnableIPv4": "true"}`, false},
		{`{` + n4 + `, "EnableIPv6": 1}`, false},
		{`{` + n4 + `, "SubnetLen": -1}`, false},
		{`{` + n4 + `, "SubnetLen": 31}`, false},
		{`{` + n4 + `, "SubnetLen": 24.5}`, false},
		{`{` + n4 + `, "SubnetLen": "24"}`, false},
		{`{` + n6 + `, "IPv6SubnetLen": 127}`, false},
		{`{` + n4 + `, "SubnetMin": "10.0.1"}`, false},
		{`{` + n4 + `, "SubnetMax": 10}`, false},
		{`{` + n4 + `, "SubnetMax": "fd00::"}`, false},
		{`{` + n6 + `, "IPv6SubnetMin": "10.0.0.0"}`, false},
		{`{` + n6 + `, "IPv6SubnetMax": "fd00::%eth0"}`, false},
		{`{` + n4 + `, "Backend": "vxlan"}`, false},
		{`{` + n4 + `, "Backend": []}`, false},
		{`{` + n4 + `, "Backend": {"Type": ""}}`, false},
		{`{` + n4 + `, "Backend": {"Type": "udp"}}`, false},
		{`{` + n4 + `, "Backend": {"Type": "vxlan "}}`, false},
		{`{` + n4 + `, "Backend": {"Type": true}}`, false},
		{`{` + n4 + `, "Backend": {"VNI": 0}}`, false},
		{`{` + n4 + `, "Backend": {"VNI": 16777216}}`, false},
		{`{` + n4 + `, "Backend": {"VNI": "1"}}`, false},
		{`{` + n4 + `, "Backend": {"Port": -1}}`, false},
		{`{` + n4 + `, "Backend": {"Port": 65536}}`, false},
		{`{` + n4 + `, "Backend": {"MTU": 575}}`, false},
		{`{` + n4 + `, "Backend": {"MTU": 1}}`, false},
		{`{` + n4 + `, "Backend": {"MTU": 65536}}`, false},
		{`{` + n4 + `, "Backend": {"MTU": "1500"}}`, false},
		{`{` + n4 + `, "Backend": {"GBP": "no"}}`, false},
		{`{` + n4 + `, "Backend": {"Learning": 0}}`, false},
		{`{` + n4 + `, "Backend": {"DirectRouting": {}}}`, false},
	} {
		if err := validate(t, s, []byte(v.text)); (err == nil) != v.good {
			t.Errorf("schema on %s: %v; want good=%v", v.text, err, v.good)
		}
		if _, err := ParseConfig([]byte(v.text), "test", Defaults{Open: true}); (err == nil) != v.good {
			t.Errorf("parser on %s: %v; want good=%v", v.text, err, v.good)
		}
	}
}

// What a schema cannot say: how values fit each other, that 24.0 is not an
// integer, and which store it is for. The parser is the stricter one in each
// case.
func TestSchemaLeavesToParser(t *testing.T) {
	s := compiledSchema(t)
	for _, text := range []string{
		`{"Network": "10.0.0.0/29"}`,
		`{"Network": "127.0.0.0/8"}`,
		`{"Network": "10.0.0.0/16", "SubnetLen": 17}`,
		`{"Network": "10.0.0.0/16", "SubnetMin": "10.0.1.1"}`,
		`{"Network": "10.0.0.0/16", "SubnetLen": 24.0}`,
		`{"IPv6Network": "fd00:::/48"}`,
		`{}`,
		`{"Network": null}`,
		`{"Network": "10.0.0.0/16", "EnableIPv4": false}`,
		`{"Network": "10.0.0.0/16", "EnableIPv6": true}`,
	} {
		if err := validate(t, s, []byte(text)); err != nil {
			t.Errorf("schema on %s: %v; it learned something, move the case up", text, err)
		}
		if _, err := ParseConfig([]byte(text), "test", Defaults{}); err == nil {
			t.Errorf("parser takes %s", text)
		}
	}
}

// The schema lists every key the parser reads, in flannel's spelling, with a
// description, and no other.
func TestSchemaNamesEveryKey(t *testing.T) {
	type object struct {
		Description string
		Properties  map[string]object
	}
	var doc object
	if err := json.Unmarshal(ConfigSchema(), &doc); err != nil {
		t.Fatal(err)
	}
	check := func(where string, have map[string]object, want reflect.Type) {
		var names []string
		for i := range want.NumField() {
			names = append(names, want.Field(i).Name)
			if have[want.Field(i).Name].Description == "" {
				t.Errorf("%s: %s has no description", where, want.Field(i).Name)
			}
		}
		for name := range have {
			if !slices.Contains(names, name) {
				t.Errorf("%s: the parser does not read %s", where, name)
			}
		}
	}
	check("schema", doc.Properties, reflect.TypeFor[confJSON]())
	check("schema of Backend", doc.Properties["Backend"].Properties, reflect.TypeFor[backendJSON]())
}

// hasSchemaSpelling reports whether no key of data differs from one the
// parser reads in case alone; the schema knows one spelling.
func hasSchemaSpelling(data []byte) bool {
	var top map[string]any
	if json.Unmarshal(data, &top) != nil {
		return false
	}
	spelled := func(m map[string]any, keys reflect.Type) bool {
		for k := range m {
			for i := range keys.NumField() {
				if n := keys.Field(i).Name; k != n && strings.EqualFold(k, n) {
					return false
				}
			}
		}
		return true
	}
	backend, _ := top["Backend"].(map[string]any)
	return spelled(top, reflect.TypeFor[confJSON]()) && spelled(backend, reflect.TypeFor[backendJSON]())
}
