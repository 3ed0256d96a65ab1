// SPDX-License-Identifier: Apache-2.0

// Command image packs a directory of static binaries as an OCI image archive,
// from scratch and without Docker. The same directory, labels and chart give
// the same bytes, whoever packs them, where and when.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Getenv, os.Stdout, os.Stderr); err != nil {
		if !errors.Is(err, flag.ErrHelp) {
			fmt.Fprintln(os.Stderr, "image:", err)
		}
		os.Exit(1)
	}
}

func run(args []string, env func(string) string, stdout, stderr io.Writer) error {
	var s spec
	var chart, out, created string
	f := flag.NewFlagSet("image", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&s.root, "root", "", "directory whose content the image has")
	f.StringVar(&s.arch, "arch", "amd64", "architecture of the binaries: amd64 or arm64")
	f.StringVar(&s.revision, "revision", "", "commit that the binaries were built from")
	f.StringVar(&created, "created", "0", "time of that commit, seconds since 1970; SOURCE_DATE_EPOCH wins")
	f.StringVar(&chart, "chart", "", "directory of the chart, which has the image's name")
	f.StringVar(&out, "o", "", "archive to write")
	if err := f.Parse(args); err != nil {
		return err
	}
	if v := env("SOURCE_DATE_EPOCH"); v != "" {
		created = v
	}
	seconds, err := strconv.ParseInt(created, 10, 64)
	if err != nil || seconds < 0 {
		return fmt.Errorf("time of the commit %q: want seconds since 1970", created)
	}
	s.created = time.Unix(seconds, 0).UTC()
	if s.arch != "amd64" && s.arch != "arm64" {
		return fmt.Errorf("architecture %q: want amd64 or arm64", s.arch)
	}
	if s.name, s.version, err = chartImage(chart); err != nil {
		return err
	}
	digest, err := write(out, s)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%s: %s for linux/%s, %s\n", out, s.name, s.arch, digest)
	return nil
}
