// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// bridgeOf builds a program that says of itself what a reference plugin says.
// library is the version of the CNI library in it, flags are for go build.
func bridgeOf(t *testing.T, module, library string, flags ...string) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir+"/cni/go.mod", "module "+cniModule+"\n", 0o644)
	write(t, dir+"/cni/cni.go", "package cni\n\nconst X = 1\n", 0o644)
	write(t, dir+"/p/go.mod", fmt.Sprintf("module %s\n\ngo 1.26\n\nrequire %s %s\n\nreplace %[2]s => ../cni\n", module, cniModule, library), 0o644)
	write(t, dir+"/p/plugins/main/bridge/main.go", fmt.Sprintf("package main\n\nimport cni %q\n\nfunc main() { _ = cni.X }\n", cniModule), 0o644)
	goRun(t, dir+"/p", append(append([]string{"build", "-buildvcs=false"}, flags...), "-o", dir+"/bridge", "./plugins/main/bridge")...)
	return read(t, dir+"/bridge")
}

func release(v string) []string {
	return []string{"-ldflags", "-X " + pluginsModule + "/pkg/utils/buildversion.BuildVersion=" + v}
}

// altered is the same program with other bytes: another OS ABI.
func altered(program string) string { return program[:7] + "\x03" + program[8:] }

func TestReplaces(t *testing.T) {
	ours := bridgeOf(t, pluginsModule, "v1.3.0", release("v1.9.1")...)
	old := bridgeOf(t, pluginsModule, "v1.3.0", release("v1.5.1")...)
	bare := bridgeOf(t, pluginsModule, "v1.1.2", "-trimpath") // which leaves the flags with the version out
	fork := bridgeOf(t, "example.com/plugins", "v1.0.0")
	foreign := ours[:18] + "\xb7\x00" + ours[20:] // e_machine: EM_AARCH64
	for _, c := range []struct {
		name, plugin, ours, there string
		mode                      os.FileMode
		want                      bool
		why                       string
	}{
		{"the same", "bridge", ours, ours, 0o755, false, "this one already"},
		{"the same, not executable", "bridge", ours, ours, 0o644, true, "not executable"},
		{"same version", "bridge", ours, altered(ours), 0o755, false, "not older: the plugins' version is 1.9.1, ours 1.9.1"},
		{"older release", "bridge", ours, old, 0o755, true, "the plugins' version was 1.5.1, ours is 1.9.1"},
		{"newer release", "bridge", old, ours, 0o755, false, "version is 1.9.1, ours 1.5.1"},
		{"no version, older library", "bridge", ours, bare, 0o755, true, "CNI library's version was 1.1.2"},
		{"no version, newer library", "bridge", bare, ours, 0o755, false, "CNI library's version is 1.3.0"},
		{"a fork", "bridge", ours, fork, 0o755, false, "example.com/plugins/plugins/main/bridge, not the reference plugin"},
		{"an operator's script", "bridge", ours, "#!/bin/sh\nexec /opt/other/bridge\n", 0o755, false, "does not say what it is"},
		{"another weft", "weft", ours, altered(ours), 0o755, true, "another one"},
		{"nothing in it", "bridge", ours, "", 0o755, true, "damaged"},
		{"half", "bridge", ours, ours[:len(ours)/2], 0o755, true, "damaged"},
		{"another machine", "bridge", ours, foreign, 0o755, true, "another machine"},
	} {
		path := filepath.Join(t.TempDir(), c.plugin)
		write(t, path, c.there, c.mode)
		got, why, err := replaces(c.plugin, []byte(c.ours), path)
		if err != nil || got != c.want || !strings.Contains(why, c.why) {
			t.Errorf("%s: %v %q %v, want %v with %q", c.name, got, why, err, c.want, c.why)
		}
	}
	if _, _, err := replaces("bridge", []byte(ours), t.TempDir()); err == nil || !strings.Contains(err.Error(), "remove it") {
		t.Errorf("a directory in its place: %v", err)
	}
}

// A symbolic link (k3s links its plugins to one program) is replaced itself,
// not what it points at; one that leads nowhere counts as missing.
func TestInstallCNILinks(t *testing.T) {
	from, to, other := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "cni")
	write(t, filepath.Join(from, "bridge"), "new", 0o755)
	write(t, filepath.Join(from, "weft"), "new", 0o755)
	write(t, other, "torn", 0o755)
	for name, target := range map[string]string{"weft": other, "bridge": other + "-gone"} {
		if err := os.Symlink(target, filepath.Join(to, name)); err != nil {
			t.Fatal(err)
		}
	}
	installTo(t, from, to)
	for _, name := range []string{"weft", "bridge"} {
		info, err := os.Lstat(filepath.Join(to, name))
		if err != nil || !info.Mode().IsRegular() || read(t, filepath.Join(to, name)) != "new" {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	if read(t, other) != "torn" {
		t.Error("what the link pointed at was changed")
	}
}
