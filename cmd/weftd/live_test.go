// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strings"
	"testing"

	"weft.dev/weft/subnet"
)

func config(t *testing.T, text string) subnet.Config {
	t.Helper()
	cfg, err := subnet.ParseConfig([]byte(text), "test", subnet.Defaults{})
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// What may change under running pods is applied; what may not is a Problem,
// and so is what is wrong; the one in force stays then.
func TestConfigurationsAreJudged(t *testing.T) {
	const start = `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48","Backend":{"Type":"vxlan","VNI":7}}`
	for name, c := range map[string]struct {
		next, problem, text string
		err                 error
	}{
		"the same":        {next: start},
		"direct routing":  {next: `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48","Backend":{"VNI":7,"DirectRouting":true}}`},
		"host-gw":         {next: `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48","Backend":{"Type":"host-gw","VNI":7}}`},
		"MTU":             {next: `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48","Backend":{"VNI":7,"MTU":1400}}`},
		"learning, GBP":   {next: `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48","Backend":{"VNI":7,"Learning":true,"GBP":true}}`},
		"another network": {next: `{"Network":"10.43.0.0/16","IPv6Network":"fd42::/48","Backend":{"VNI":7}}`, problem: "ConfigChanged", text: "10.42.0.0/16, now 10.43.0.0/16"},
		"a family less":   {next: `{"Network":"10.42.0.0/16","Backend":{"VNI":7}}`, problem: "ConfigChanged", text: "fd42::/48, now none"},
		"subnet length":   {next: `{"Network":"10.42.0.0/16","SubnetLen":25,"IPv6Network":"fd42::/48","Backend":{"VNI":7}}`, problem: "ConfigChanged", text: "now /25"},
		"range":           {next: `{"Network":"10.42.0.0/16","SubnetMin":"10.42.9.0","IPv6Network":"fd42::/48","Backend":{"VNI":7}}`, problem: "ConfigChanged", text: "from 10.42.9.0"},
		"VNI":             {next: `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48","Backend":{"VNI":8}}`, problem: "ConfigChanged", text: "the VNI (7, now 8)"},
		"port":            {next: `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48","Backend":{"VNI":7,"Port":4789}}`, problem: "ConfigChanged", text: "the port (8472, now 4789)"},
		"port and direct": {next: `{"Network":"10.42.0.0/16","IPv6Network":"fd42::/48","Backend":{"VNI":7,"Port":4789,"DirectRouting":true}}`, problem: "ConfigChanged", text: "nothing of the new"},
		"invalid":         {next: start, err: errors.New("Network: no prefix"), problem: "ConfigInvalid", text: "Network: no prefix"},
	} {
		a, _ := bare(t)
		was, next := config(t, start), config(t, c.next)
		a.network.Store(&was)
		var applied []subnet.Config
		a.judgeConfig(next, c.err, func(cfg subnet.Config) { applied = append(applied, cfg) })
		problems := a.problems.all()
		if c.problem != "" {
			if len(problems) != 1 || problems[0].Kind != c.problem || !strings.Contains(problems[0].Detail, c.text) || len(applied) != 0 || a.network.Load().Backend != was.Backend {
				t.Errorf("%s: %v, applied %v; want %s with %q", name, problems, applied, c.problem, c.text)
			}
			// It is over when the configuration is as it was.
			a.judgeConfig(was, nil, func(cfg subnet.Config) { applied = append(applied, cfg) })
			if left := a.problems.all(); len(left) != 0 || len(applied) != 0 {
				t.Errorf("%s, taken back: %v, applied %v", name, left, applied)
			}
			continue
		}
		if len(problems) != 0 || a.network.Load().Backend != next.Backend || (len(applied) == 1) != (next.Backend != was.Backend) {
			t.Errorf("%s: %v, applied %v, in force %+v", name, problems, applied, a.network.Load())
		}
	}
}
