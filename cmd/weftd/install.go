// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/pflag"
)

const (
	// installCommand is what `weftd install-cni` begins with. It is a word and
	// not a flag, for it shares no setting with the agent.
	installCommand = "install-cni"
	// scratchDir is where files are written before they take their place. It is
	// below the directory of the plugins, which is the only one sure to be on the
	// same file system; runtimes look for files there, not for directories.
	scratchDir = ".weft-install"
	// installPatience is how long to wait for another run to end.
	installPatience = time.Minute
)

// installer puts the CNI plugins that came with this program where container
// runtimes look for them. It runs nothing of what it finds there.
type installer struct {
	from, to string
	out      io.Writer
}

// installCNI is `weftd install-cni`. It returns the exit status: 0 only if every
// plugin is in place.
func installCNI(ctx context.Context, args, env []string, stdout, stderr io.Writer) int {
	i := installer{out: stdout}
	flags := i.define()
	err := i.parse(flags, args, envMap(env))
	if errors.Is(err, pflag.ErrHelp) {
		fmt.Fprintf(stdout, "weftd %s copies the CNI plugins that came with weftd to where container runtimes look for them.\n"+
			"Plugin weft is replaced when it is another one; the reference plugins are left alone unless they\n"+
			"are missing, unusable or older. A directory never holds half a plugin.\n\n%s", installCommand, flags.FlagUsages())
		return 0
	}
	if err != nil {
		fmt.Fprintf(stderr, "weftd %s: %v\n", installCommand, err)
		return 2
	}
	if err := i.run(ctx); err != nil {
		fmt.Fprintf(stderr, "weftd %s: %v\n", installCommand, err)
		return 1
	}
	return 0
}

func (i *installer) define() *pflag.FlagSet {
	f := pflag.NewFlagSet("weftd "+installCommand, pflag.ContinueOnError)
	f.SortFlags = false
	f.Usage = func() {}
	beside := ""
	if self, err := os.Executable(); err == nil {
		beside = filepath.Join(filepath.Dir(self), "cni")
	} // else --from is asked for
	f.StringVar(&i.from, "from", beside, "directory of the plugins to install")
	f.StringVar(&i.to, "to", "/opt/cni/bin", "directory where container runtimes look for CNI plugins")
	return f
}

// parse reads flags over environment over defaults. Variables of the agent's
// settings may be there too, so an unknown one is no error.
func (i *installer) parse(f *pflag.FlagSet, args []string, env map[string]string) error {
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("argument %q: %s takes flags only", f.Arg(0), installCommand)
	}
	for _, name := range []string{"from", "to"} {
		flag, origin := f.Lookup(name), "flag --"+name
		if !flag.Changed {
			origin = "default"
			variable := envPrefix + "INSTALL_CNI_" + envName(name)
			if v, ok := env[variable]; ok {
				origin = "environment " + variable
				if err := f.Set(name, v); err != nil {
					return fmt.Errorf("%s=%q: %w", origin, v, err)
				}
			}
		}
		if v := flag.Value.String(); !filepath.IsAbs(v) {
			return fmt.Errorf("%s (%s): value %q: want an absolute path", name, origin, v)
		}
	}
	return nil
}

// run installs what there is to install. What fails does not keep the rest
// from being installed. Runs at the same time take turns.
func (i installer) run(ctx context.Context) error {
	names, err := i.plugins()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(i.to, 0o755); err != nil {
		return i.explain(fmt.Errorf("make the directory of CNI plugins: %w", err))
	}
	wait, cancel := context.WithTimeout(ctx, installPatience)
	defer cancel()
	unlock, err := lockDirectory(wait, i.to)
	if err != nil {
		return fmt.Errorf("wait for another %s to end: %w", installCommand, err)
	}
	defer unlock()
	// Nobody else is at it, so what is there is left of a run that was killed.
	// What cannot be removed does no harm, or what follows fails and says so.
	scratch := filepath.Join(i.to, scratchDir)
	_ = os.RemoveAll(scratch)
	defer func() { _ = os.RemoveAll(scratch) }()

	var errs []error
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := i.plugin(name, scratch); err != nil {
			errs = append(errs, i.explain(fmt.Errorf("CNI plugin %s: %w", name, err)))
		}
	}
	return errors.Join(append(errs, syncDir(i.to))...)
}

// plugins lists what is to be installed.
func (i installer) plugins() ([]string, error) {
	entries, err := os.ReadDir(i.from)
	if err != nil {
		return nil, fmt.Errorf("plugins to install: %w; --from names their directory", err)
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("plugins to install: none in %s; --from names their directory", i.from)
	}
	return names, nil
}

// plugin installs one, if it is to be.
func (i installer) plugin(name, scratch string) error {
	ours, err := os.ReadFile(filepath.Join(i.from, name))
	if err != nil {
		return err
	}
	path := filepath.Join(i.to, name)
	needed, why, err := replaces(name, ours, path)
	if err != nil {
		return err
	}
	if !needed {
		fmt.Fprintf(i.out, "%s stays: %s\n", path, why)
		return nil
	}
	if err := os.MkdirAll(scratch, 0o700); err != nil {
		return err
	}
	// Synced before it is renamed, so that after a crash of the machine too
	// there is the old file or the new one.
	// renameio's WriteFile would keep the mode of the file that is there.
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(scratch), renameio.WithStaticPermissions(0o755))
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }() // after a rename there is nothing to clean
	if _, err := f.Write(ours); err != nil {
		return err
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return err
	}
	fmt.Fprintf(i.out, "%s installed: %s\n", path, why)
	return nil
}

// explain adds to an error what to do about it.
func (i installer) explain(err error) error {
	switch {
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: %s is read-only: mount the host's directory writable, or have the container runtime look elsewhere (its bin_dir) and name that with --to (in the chart, cni.binDir)", err, i.to)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: user %d may not write to %s: `chown root: %[3]s` on the host, or run this as its owner", err, os.Getuid(), i.to)
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: free some space in %s; what was there before is still whole", err, i.to)
	}
	return err
}

// syncDir makes renames in dir last over a crash of the machine.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync the directory of CNI plugins: %w", err)
	}
	err = d.Sync()
	d.Close()                                          // nothing was written through it
	if err != nil && !errors.Is(err, syscall.EINVAL) { // EINVAL: this file system cannot
		return fmt.Errorf("sync the directory of CNI plugins: %w", err)
	}
	return nil
}

// sameContent reports whether f, of the given size, holds data.
func sameContent(f *os.File, size int64, data []byte) (bool, error) {
	if size != int64(len(data)) {
		return false, nil
	}
	have, err := io.ReadAll(io.NewSectionReader(f, 0, size))
	return err == nil && bytes.Equal(have, data), err
}
