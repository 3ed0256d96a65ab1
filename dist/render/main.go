// SPDX-License-Identifier: Apache-2.0

// Command render renders the manifests from the chart with Helm's own engine,
// or, with --check, says whether those in the repository are as it would
// render them.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "render:", err)
		}
		os.Exit(1)
	}
}

func run(args []string, stdout, stderr io.Writer) error {
	f := flag.NewFlagSet("render", flag.ContinueOnError)
	f.SetOutput(stderr)
	chart := f.String("chart", "../chart/weft", "directory of the chart")
	out := f.String("out", "../manifests", "directory of the manifests")
	check := f.Bool("check", false, "compare, and write nothing")
	if err := f.Parse(args); err != nil {
		return err
	}
	var errs []error
	for _, v := range variants() {
		want, err := render(*chart, v.values)
		if err != nil {
			return fmt.Errorf("%s: %w", v.file, err)
		}
		path := filepath.Join(*out, v.file)
		if !*check {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				return err
			}
			fmt.Fprintln(stdout, path)
			continue
		}
		have, err := os.ReadFile(path)
		if err == nil && !bytes.Equal(have, want) {
			err = fmt.Errorf("%s is not what %s renders: change the chart and run `make manifests`", path, *chart)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
