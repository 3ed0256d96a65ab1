// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime/debug"
	"strings"

	"github.com/coreos/go-semver/semver"
)

const (
	shimName = "weft"
	// pluginsModule is where the reference plugins come from, cniModule the
	// library in them that decides which versions of CNI they speak.
	pluginsModule = "github.com/containernetworking/plugins"
	cniModule     = "github.com/containernetworking/cni"
)

// releaseFlag is how the plugins' own release script writes the version down,
// when it is built without -trimpath.
var releaseFlag = regexp.MustCompile(`/buildversion\.BuildVersion=v?([0-9][^\s'"]*)`)

// replaces decides whether ours is to take the place of what is at path, and
// says why or why not. Plugin weft is: agent and plugin belong together. A
// reference plugin belongs to the node, and whoever put it there may have had
// a reason, so it is replaced only if it cannot run or is older for certain.
//
// What it is is read from its file: plugins answer VERSION with what they
// speak, but not with what they are, and running a foreign file as root to
// find out is what an installer should not do.
func replaces(name string, ours []byte, path string) (needed bool, why string, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return true, "it was missing", nil
	}
	if err != nil {
		return false, "", err
	}
	defer f.Close() // only read
	info, err := f.Stat()
	if err != nil {
		return false, "", err
	}
	if !info.Mode().IsRegular() {
		return false, "", fmt.Errorf("%s is in its place (%v): remove it", path, info.Mode().Type())
	}
	same, err := sameContent(f, info.Size(), ours)
	switch {
	case err != nil:
		return false, "", err
	case info.Mode().Perm()&0o111 == 0:
		return true, "it was not executable", nil
	case same:
		return false, "it is this one already", nil
	case name == shimName:
		return true, "it was another one", nil
	}
	if why, err = unusable(ours, f, info.Size()); why != "" || err != nil {
		return why != "", why, err
	}
	needed, why = older(name, ours, f)
	return needed, why, nil
}

// unusable says why the kernel cannot run f, or "".
func unusable(ours []byte, f io.ReaderAt, size int64) (why string, err error) {
	start := make([]byte, 2)
	if _, err := f.ReadAt(start, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	if string(start) == "#!" {
		return "", nil // somebody's script
	}
	theirs, err := elf.NewFile(f)
	if err != nil {
		return "it was damaged, or no program: " + err.Error(), nil
	}
	for _, p := range theirs.Progs {
		if p.Type == elf.PT_LOAD && p.Off+p.Filesz > uint64(size) {
			return "it was damaged: its end was missing", nil
		}
	}
	if own, err := elf.NewFile(bytes.NewReader(ours)); err == nil && own.Machine != theirs.Machine {
		return fmt.Sprintf("it was a program for another machine, %v", theirs.Machine), nil
	}
	return "", nil
}

// older reports whether f is the reference plugin called name and certainly
// older than ours. The plugins' version decides where the file has it, else
// the version of the CNI library that was built in.
func older(name string, ours []byte, f io.ReaderAt) (bool, string) {
	theirs, err := buildinfo.Read(f)
	if err != nil {
		return false, "it does not say what it is"
	}
	if !strings.HasPrefix(theirs.Path, pluginsModule+"/") || !strings.HasSuffix(theirs.Path, "/"+name) {
		return false, fmt.Sprintf("it is %s, not the reference plugin", theirs.Path)
	}
	own, err := buildinfo.Read(bytes.NewReader(ours))
	if err != nil {
		return false, "ours does not say what it is"
	}
	for _, version := range []struct {
		of   string
		from func(*debug.BuildInfo) *semver.Version
	}{{"the plugins'", pluginsVersion}, {"its CNI library's", libraryVersion}} {
		have, want := version.from(theirs), version.from(own)
		if have == nil || want == nil {
			continue
		}
		if have.LessThan(*want) {
			return true, fmt.Sprintf("it was older: %s version was %v, ours is %v", version.of, have, want)
		}
		return false, fmt.Sprintf("it is not older: %s version is %v, ours %v", version.of, have, want)
	}
	return false, "it does not say how old it is"
}

// pluginsVersion is the release of the reference plugins that b is from, or
// nil if b does not say.
func pluginsVersion(b *debug.BuildInfo) *semver.Version {
	if v := parseVersion(b.Main.Version); v != nil {
		return v
	}
	for _, s := range b.Settings {
		if s.Key != "-ldflags" {
			continue
		}
		if m := releaseFlag.FindStringSubmatch(s.Value); m != nil {
			return parseVersion(m[1])
		}
	}
	return nil
}

func libraryVersion(b *debug.BuildInfo) *semver.Version {
	for _, d := range b.Deps {
		if d.Path == cniModule {
			return parseVersion(d.Version)
		}
	}
	return nil
}

// parseVersion returns nil for what is no version: "(devel)", or v0.0.0-...,
// which the go command makes up for a repository without tags.
func parseVersion(text string) *semver.Version {
	v, err := semver.NewVersion(strings.TrimPrefix(text, "v"))
	if err != nil || v.Major == 0 && v.Minor == 0 && v.Patch == 0 {
		return nil
	}
	return v
}
