// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
)

// variant is a manifest and the values that it has other than the defaults.
type variant struct {
	file   string
	values map[string]any
}

func variants() []variant {
	return []variant{
		{"weft.yaml", nil},
		{"weft-flannel-compat.yaml", map[string]any{"flannelCompat": true}},
	}
}

// order is that in which the objects of a manifest are made: what agents need
// before the agents.
func order() []string {
	return []string{"serviceaccount.yaml", "rbac.yaml", "admissionpolicy.yaml", "configmap.yaml", "daemonset.yaml"}
}

// render returns the chart's objects as `helm template --namespace kube-system`
// has them. Values are checked against the chart's schema.
func render(dir string, values map[string]any) ([]byte, error) {
	chart, err := loader.Load(dir)
	if err != nil {
		return nil, err
	}
	release := chartutil.ReleaseOptions{Name: "weft", Namespace: "kube-system", Revision: 1, IsInstall: true}
	all, err := chartutil.ToRenderValues(chart, values, release, chartutil.DefaultCapabilities)
	if err != nil {
		return nil, err
	}
	files, err := engine.Engine{Strict: true}.Render(chart, all)
	if err != nil {
		return nil, err
	}
	var names []string
	for name, text := range files {
		if strings.HasSuffix(name, ".yaml") && strings.TrimSpace(text) != "" {
			if !slices.Contains(order(), path.Base(name)) {
				return nil, fmt.Errorf("template %s has no place in the order of objects", name)
			}
			names = append(names, name)
		}
	}
	rank := func(name string) int { return slices.Index(order(), path.Base(name)) }
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
	var buf bytes.Buffer
	buf.WriteString("# SPDX-License-Identifier: Apache-2.0\n# Rendered from dist/chart/weft by `make manifests`; change that.\n")
	for _, name := range names {
		fmt.Fprintf(&buf, "---\n%s\n", strings.TrimSpace(files[name]))
	}
	return buf.Bytes(), nil
}
