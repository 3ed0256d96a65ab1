// SPDX-License-Identifier: Apache-2.0

package parts

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"weft.dev/weft/tests/netlab"
)

// CacheEnv is the environment variable that says where the cache is.
const CacheEnv = "WEFT_E2E_CACHE"

// modulesDir holds the modules, from the root of the repository.
const modulesDir = "tests/e2e/parts/modules"

// A Cache holds built parts.
type Cache struct {
	dir      string
	modules  string // where the modules are
	progress io.Writer
	mu       sync.Mutex // of progress
	start    time.Time
}

// Open returns the cache in dir, which defaults to $WEFT_E2E_CACHE and then to
// weft-e2e in the user's cache directory. It makes the directory. root is the
// root of the repository. Progress is one line for each part that is built.
func Open(dir, root string, progress io.Writer) (*Cache, error) {
	if dir == "" {
		dir = os.Getenv(CacheEnv)
	}
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("where to keep what is built: %w; say it with %s", err, CacheEnv)
		}
		dir = filepath.Join(user, "weft-e2e")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	for _, hidden := range []string{"/run/", "/var/run/", "/var/lib/", "/var/log/", "/etc/", "/opt/", "/proc/", "/sys/"} {
		if strings.HasPrefix(dir+"/", hidden) {
			return nil, fmt.Errorf("cache %s: nodes have a %s of their own and would not see it; choose another directory with %s",
				dir, strings.TrimSuffix(hidden, "/"), CacheEnv)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	return &Cache{dir: dir, modules: filepath.Join(root, modulesDir), progress: progress, start: time.Now()}, nil
}

// Root returns the root of the repository that the working directory is in.
func Root() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for d := wd; ; d = filepath.Dir(d) {
		if _, err := os.Stat(filepath.Join(d, modulesDir)); err == nil {
			return d, nil
		}
		if d == filepath.Dir(d) {
			return "", fmt.Errorf("no %s in %s or above it: run this in weft's repository", modulesDir, wd)
		}
	}
}

// A Set is all parts of a cluster, complete.
type Set struct {
	Dirs     []string          // that hold the programs, for PATH
	Programs map[string]string // by name
	Images   []string          // archives to import on each node
	Versions map[string]string // of each module
}

// Path returns the value of PATH with which programs find each other.
func (s Set) Path() string {
	return strings.Join(append(slices.Clone(s.Dirs), os.Getenv("PATH"), "/usr/sbin", "/sbin"), ":")
}

// Missing returns an error that names the programs that are not installed,
// and the Debian packages that bring them.
func Missing() error {
	var programs, packages []string
	for program, pkg := range FromDebian() {
		if _, err := exec.LookPath(program); err != nil {
			programs = append(programs, program)
			packages = append(packages, pkg)
		}
	}
	if len(programs) == 0 {
		return nil
	}
	slices.Sort(programs)
	slices.Sort(packages)
	return fmt.Errorf("not installed: %s (Debian: %s); `make deps` installs what the tests use",
		strings.Join(programs, ", "), strings.Join(packages, " "))
}

// Build builds the parts that are not in the cache yet and returns all of
// them, but for those in without.
func (c *Cache) Build(ctx context.Context, without ...string) (Set, error) {
	if err := Missing(); err != nil {
		return Set{}, err
	}
	set := Set{Programs: map[string]string{}, Versions: map[string]string{}}
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	// Compiling fills the machine; linking does not. Two at a time overlap
	// the one with the other.
	g.SetLimit(2)
	for _, m := range catalogue() {
		m.parts = slices.DeleteFunc(m.parts, func(p part) bool { return slices.Contains(without, p.name) })
		if len(m.parts) == 0 {
			continue
		}
		g.Go(func() error {
			b, err := c.prepare(gctx, m)
			if err != nil {
				return err
			}
			mu.Lock()
			set.Dirs = append(set.Dirs, b.dir)
			set.Versions[m.name] = b.version
			for _, p := range m.parts {
				set.Programs[p.name] = b.path(p)
			}
			mu.Unlock()
			return c.buildAll(gctx, b)
		})
	}
	if err := g.Wait(); err != nil {
		return Set{}, err
	}
	slices.Sort(set.Dirs)
	var err error
	set.Images, err = c.images(ctx, set)
	return set, err
}

// Programs builds the programs with these names, those that are not in the
// cache yet, and returns their paths. A program alone needs no image and no
// Debian package.
func (c *Cache) Programs(ctx context.Context, names ...string) ([]string, error) {
	var paths []string
	for _, name := range names {
		m, p, err := find(name)
		if err != nil {
			return nil, err
		}
		b, err := c.prepare(ctx, m)
		if err != nil {
			return nil, err
		}
		if err := c.buildPart(ctx, b, p); err != nil {
			return nil, err
		}
		paths = append(paths, b.path(p))
	}
	return paths, nil
}

// lock waits for whoever else makes the file at path.
func (c *Cache) lock(ctx context.Context, path string) (unlock func(), err error) {
	locks := filepath.Join(c.dir, "locks")
	if err := os.MkdirAll(locks, 0o755); err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	name := filepath.Base(filepath.Dir(path)) + "-" + filepath.Base(path)
	f, err := os.OpenFile(filepath.Join(locks, name), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	for told := false; ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !told {
			c.say("another process makes %s; waiting for it", filepath.Base(path))
			told = true
		}
		if err := netlab.Pause(ctx, 200*time.Millisecond); err != nil {
			f.Close()
			return nil, fmt.Errorf("wait for the lock of %s: %w", path, err)
		}
	}
}

// say writes a line of progress, with the time since Open.
func (c *Cache) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.progress, "[%5.1f s] %s\n", time.Since(c.start).Seconds(), fmt.Sprintf(format, args...))
}

// place makes the file at path by what write does to a temporary one beside
// it. It does nothing if the file is there, and one process at a time.
func (c *Cache) place(ctx context.Context, path string, write func(temporary string) error) error {
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	unlock, err := c.lock(ctx, path)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		return err // made meanwhile
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// A fixed name never leaves more than one half of a file behind.
	temporary := path + ".part"
	if err := os.RemoveAll(temporary); err != nil {
		return err
	}
	if err := write(temporary); err != nil {
		return errors.Join(err, os.RemoveAll(temporary))
	}
	return os.Rename(temporary, path)
}
