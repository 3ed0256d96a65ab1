// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/name"
	"sigs.k8s.io/yaml"
)

// chartImage returns the name that the chart's manifests give the image, and
// the version in it: it is said there and nowhere else.
func chartImage(dir string) (image, version string, err error) {
	var values struct {
		Image struct{ Repository, Tag string }
	}
	var chart struct{ AppVersion string }
	for file, into := range map[string]any{"values.yaml": &values, "Chart.yaml": &chart} {
		data, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return "", "", fmt.Errorf("name of the image: %w; --chart names the chart's directory", err)
		}
		if err := yaml.Unmarshal(data, into); err != nil {
			return "", "", fmt.Errorf("name of the image: %s: %w", file, err)
		}
	}
	tag := values.Image.Tag
	if tag == "" {
		tag = chart.AppVersion // as the chart's templates do
	}
	ref, err := name.NewTag(values.Image.Repository+":"+tag, name.StrictValidation)
	if err != nil {
		return "", "", fmt.Errorf("name of the image in %s: %w", dir, err)
	}
	return ref.Name(), chart.AppVersion, nil
}
