// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
)

// campaigns lists all there is, in the order of the report.
func campaigns() []campaign {
	return append([]campaign{drift(), host(), store(), junk(), suspended(), race(), crowd(), guard()}, holds()...)
}

func campaignNamed(name string) (campaign, error) {
	var names []string
	for _, c := range campaigns() {
		if c.Name == name {
			return c, nil
		}
		names = append(names, c.Name)
	}
	return campaign{}, fmt.Errorf("campaign %q: want one of %s", name, strings.Join(names, ", "))
}
