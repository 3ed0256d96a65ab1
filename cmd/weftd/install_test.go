// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// A helper is this test binary, run as a process of its own with this in its
// environment: which confinement it takes on before it installs.
const installHelper = "WEFT_TEST_INSTALL"

// TestInstallHelper is not a test but the process that others start.
func TestInstallHelper(t *testing.T) {
	kind, args, ok := strings.Cut(os.Getenv(installHelper), "|")
	if !ok {
		return
	}
	from, to, _ := strings.Cut(args, "|")
	var err error
	switch kind {
	case "small-files": // writing more than this ends the process with SIGXFSZ
		const limit = 512 << 10
		err = syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: limit})
	case "full":
		if err = syscall.Mount("none", to, "tmpfs", 0, "size=1m"); err == nil {
			err = os.WriteFile(filepath.Join(to, "weft"), []byte("#!old"), 0o755)
		}
	case "read-only":
		err = syscall.Mount("none", to, "tmpfs", syscall.MS_RDONLY, "")
	case "stranger":
		err = syscall.Setuid(65534)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "helper:", err)
		os.Exit(99)
	}
	code := installCNI(context.Background(), []string{"--from", from, "--to", to}, nil, os.Stdout, os.Stderr)
	if kind == "full" {
		list, _ := os.ReadDir(to) // what is printed shows it
		old, _ := os.ReadFile(filepath.Join(to, "weft"))
		fmt.Println("left:", list, string(old))
	}
	os.Exit(code)
}

func installAs(t *testing.T, kind, from, to string, flags uintptr) (string, error) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestInstallHelper$")
	cmd.Env = append(os.Environ(), installHelper+"="+kind+"|"+from+"|"+to)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// installTo runs `weftd install-cni` and returns what it prints.
func installTo(t *testing.T, from, to string) string {
	t.Helper()
	var out bytes.Buffer
	if code := installCNI(t.Context(), []string{"--from", from, "--to", to}, nil, &out, &out); code != 0 {
		t.Fatalf("status %d: %s", code, &out)
	}
	return out.String()
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// realPlugins returns a directory with what the image carries: the reference
// plugins of `make build`, or else compiled from the module that pins them.
func realPlugins(t *testing.T) string {
	t.Helper()
	dir := t.TempDir() + "/"
	goRun(t, "", "build", "-o", dir+shimName, "../../cni-shim")
	for _, name := range []string{"bandwidth", "bridge", "host-local", "loopback", "portmap"} {
		b, err := os.ReadFile("../../bin/cni/" + name)
		if err != nil {
			goRun(t, "../../dist/cni-plugins", "build", "-ldflags", "-s -w", "-o", dir, "tool")
			return dir
		}
		write(t, dir+name, string(b), 0o755)
	}
	return dir
}

func goRun(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go %v: %v: %s", args, err, out)
	}
}

func TestInstallCNIRealPlugins(t *testing.T) {
	from, to := realPlugins(t), filepath.Join(t.TempDir(), "opt", "cni", "bin")
	if out := installTo(t, from, to); strings.Count(out, "installed: it was missing") != 6 {
		t.Fatalf("first run:\n%s", out)
	}
	names := []string{"bandwidth", "bridge", "host-local", "loopback", "portmap", "weft"}
	list, err := os.ReadDir(to)
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, e := range list {
		have = append(have, e.Name())
		info, err := e.Info()
		if err != nil || info.Mode() != 0o755 {
			t.Errorf("%s has mode %v (%v)", e.Name(), info.Mode(), err)
		}
		if read(t, filepath.Join(to, e.Name())) != read(t, filepath.Join(from, e.Name())) {
			t.Errorf("%s is not what was installed", e.Name())
		}
	}
	if !slices.Equal(have, names) {
		t.Errorf("installed %v, want %v", have, names)
	}
	cmd := exec.Command(filepath.Join(to, "bridge"))
	cmd.Env = []string{"CNI_COMMAND=VERSION"}
	if out, err := cmd.Output(); err != nil || !bytes.Contains(out, []byte(`"1.0.0"`)) {
		t.Errorf("the installed bridge answers %s, %v", out, err)
	}
	if out := installTo(t, from, to); strings.Count(out, "stays: it is this one already") != 6 {
		t.Errorf("second run:\n%s", out)
	}

	// A torn write of somebody else's, and another weft.
	write(t, filepath.Join(to, "bridge"), read(t, filepath.Join(from, "bridge"))[:1<<20], 0o755)
	write(t, filepath.Join(to, "portmap"), "", 0o755)
	write(t, filepath.Join(to, "weft"), "#!/bin/true\n", 0o755)
	for name, mode := range map[string]os.FileMode{"loopback": 0o644, "weft": 0o777} {
		if err := os.Chmod(filepath.Join(to, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	out := installTo(t, from, to)
	if strings.Count(out, "damaged") != 2 || strings.Count(out, "weft installed: it was another one") != 1 || strings.Count(out, "loopback installed: it was not executable") != 1 || strings.Count(out, "stays") != 2 {
		t.Errorf("repair:\n%s", out)
	}
	for _, name := range names {
		if info, err := os.Stat(filepath.Join(to, name)); err != nil || info.Mode() != 0o755 {
			t.Errorf("%s after the repair: %v, %v", name, info, err)
		}
	}
}

// A process that dies in the middle of writing, as by kill -9 or a crash of
// the machine, leaves what was there.
func TestInstallCNIDiesInTheMiddle(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	old := "#!/bin/sh\necho old\n"
	write(t, filepath.Join(from, "weft"), strings.Repeat("new ", 1<<20), 0o755)
	write(t, filepath.Join(to, "weft"), old, 0o755)
	out, err := installAs(t, "small-files", from, to, 0)
	if err == nil {
		t.Fatalf("the helper was not stopped: %s", out)
	}
	if got := read(t, filepath.Join(to, "weft")); got != old {
		t.Fatalf("%d bytes in the old one's place", len(got))
	}
	// Whatever it left is gone after the next run.
	write(t, filepath.Join(to, scratchDir, ".weft123"), "half", 0o755)
	installTo(t, from, to)
	if list, err := os.ReadDir(to); err != nil || len(list) != 1 || len(read(t, filepath.Join(to, "weft"))) != 4<<20 {
		t.Errorf("after the next run: %v, %v", list, err)
	}
}

func TestInstallCNIErrors(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	write(t, filepath.Join(from, "weft"), strings.Repeat("new ", 1<<20), 0o755)
	for kind, want := range map[string][]string{
		"read-only": {"CNI plugin weft", to, "read-only", "bin_dir", "--to"},
		"full":      {"CNI plugin weft", "no space left", "free some space in " + to, "left: [- weft] #!old"},
		"stranger":  {"CNI plugin weft", "user 65534 may not write to " + to, "chown root: " + to},
	} {
		flags := uintptr(syscall.CLONE_NEWNS)
		if kind == "stranger" {
			flags = 0
			for dir := to; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
				if err := os.Chmod(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
		out, err := installAs(t, kind, from, to, flags)
		if err == nil {
			t.Errorf("%s: no error: %s", kind, out)
		}
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s: no %q in:\n%s", kind, w, out)
			}
		}
	}
	var buf bytes.Buffer
	for text, args := range map[string][]string{
		`to (flag --to): value "bin": want an absolute path`: {"--to", "bin"},
		`argument "bridge": install-cni takes flags only`:    {"bridge"},
		"--from names their directory":                       {"--from", filepath.Join(from, "none"), "--to", to},
	} {
		buf.Reset()
		if code := installCNI(t.Context(), args, nil, &buf, &buf); code == 0 || !strings.Contains(buf.String(), text) {
			t.Errorf("%v: status %d, no %q in %s", args, code, text, &buf)
		}
	}
	buf.Reset()
	env := []string{"WEFTD_INSTALL_CNI_TO=elsewhere", "WEFTD_ETCD_PREFIX=/x"}
	if code := installCNI(t.Context(), nil, env, &buf, &buf); code != 2 || !strings.Contains(buf.String(), `environment WEFTD_INSTALL_CNI_TO`) {
		t.Errorf("environment: status %d, %s", code, &buf)
	}
}

// What runs at the same time, and a reader meanwhile, only ever sees whole
// files.
func TestInstallCNIConcurrently(t *testing.T) {
	to := t.TempDir()
	a, b := strings.Repeat("a", 1<<20), strings.Repeat("b", 2<<20)
	sources := []string{t.TempDir(), t.TempDir()}
	write(t, filepath.Join(sources[0], "weft"), a, 0o755)
	write(t, filepath.Join(sources[1], "weft"), b, 0o755)
	installTo(t, sources[0], to)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			var out bytes.Buffer
			if code := installCNI(t.Context(), []string{"--from", sources[i%2], "--to", to}, nil, &out, &out); code != 0 {
				t.Errorf("run %d: status %d: %s", i, code, &out)
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for {
		if got := read(t, filepath.Join(to, "weft")); got != a && got != b {
			t.Errorf("a reader saw %d bytes", len(got))
		}
		select {
		case <-done:
			if list, _ := os.ReadDir(to); len(list) != 1 {
				t.Errorf("left: %v", list)
			}
			return
		default:
		}
	}
}
