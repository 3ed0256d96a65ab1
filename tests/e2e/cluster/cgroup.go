// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"weft.dev/weft/tests/netlab"
)

const (
	cgroupMount  = "/sys/fs/cgroup"
	cgroupPrefix = "weft-e2e."
)

// cgroupName names a cluster's control groups, for its keeper and whoever
// cleans up after one.
func cgroupName(id string, keeper int) string {
	return fmt.Sprintf("%s%s.%d", cgroupPrefix, id, keeper)
}

// hierarchies returns the directories that control groups are made in: the one
// mount of version 2, or one for each controller of version 1. Where both are
// mounted Kubernetes uses version 1, and the other has no controllers.
func hierarchies() (dirs []string, unified bool, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupMount, &st); err != nil {
		return nil, false, fmt.Errorf("look at %s: %w", cgroupMount, err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return []string{cgroupMount}, true, nil
	}
	entries, err := os.ReadDir(cgroupMount)
	if err != nil {
		return nil, false, fmt.Errorf("list control groups: %w", err)
	}
	for _, e := range entries {
		dir := filepath.Join(cgroupMount, e.Name())
		// Links such as cpu -> cpu,cpuacct are no directories.
		// Where version 2 is mounted beside them, runc makes groups there too.
		if e.IsDir() && unix.Statfs(dir, &st) == nil && (st.Type == unix.CGROUP_SUPER_MAGIC || st.Type == unix.CGROUP2_SUPER_MAGIC) {
			dirs = append(dirs, dir)
		}
	}
	if len(dirs) == 0 {
		return nil, false, fmt.Errorf("no control groups are mounted in %s", cgroupMount)
	}
	return dirs, false, nil
}

// makeCgroup makes the control group of a node below the cluster's.
func makeCgroup(cluster, node string) error {
	dirs, unified, err := hierarchies()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		for _, name := range []string{cluster, node} {
			if unified {
				if err := delegate(dir); err != nil {
					return err
				}
			}
			parent := dir
			dir = filepath.Join(dir, name)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("make control group: %w", err)
			}
			if err := inheritSets(parent, dir); err != nil {
				return err
			}
		}
	}
	return nil
}

// inheritSets copies what a new group of version 1's cpuset starts without,
// and which it needs before a process can enter.
func inheritSets(parent, dir string) error {
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		now, err := os.ReadFile(filepath.Join(dir, f))
		if errors.Is(err, fs.ErrNotExist) || len(strings.TrimSpace(string(now))) > 0 {
			continue
		}
		above, err := os.ReadFile(filepath.Join(parent, f))
		if errors.Is(err, fs.ErrNotExist) {
			continue // version 2's root has none, and its children need none
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, f), above, 0)
		}
		if err != nil {
			return fmt.Errorf("set %s of control group %s: %w", f, dir, err)
		}
	}
	return nil
}

// delegate lets the children of a group of version 2 have all controllers that
// it has itself.
func delegate(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("controllers of control group %s: %w", dir, err)
	}
	for c := range strings.FieldsSeq(string(have)) {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0); err != nil {
			return fmt.Errorf("delegate controller %s from control group %s: %w", c, dir, err)
		}
	}
	return nil
}

// removeCgroups removes a cluster's control groups, whose processes have been
// killed. The kernel takes a moment to let go of them.
func removeCgroups(ctx context.Context, cluster string) error {
	dirs, _, err := hierarchies()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for _, dir := range dirs {
		dir = filepath.Join(dir, cluster)
		for {
			err := removeTree(dir)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("remove control group: %w", err)
			}
			if netlab.Pause(ctx, 50*time.Millisecond) != nil {
				return fmt.Errorf("remove control group: %w", err)
			}
		}
	}
	return nil
}

// removeTree removes a group and those below it. Its files are not files.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

// cgroupNames lists the control groups of the clusters with that ID, or of all
// with "*".
func cgroupNames(id string) ([]string, error) {
	dirs, _, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, dir := range dirs {
		found, err := filepath.Glob(filepath.Join(dir, cgroupPrefix+id+".*"))
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			names = append(names, filepath.Base(f))
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// awaitKeeper waits until a cluster that has ended has no control groups any
// more, and removes them if its keeper cannot.
func awaitKeeper(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		names, err := cgroupNames(id)
		if err != nil || len(names) == 0 {
			return err
		}
		for _, name := range names {
			if !kept(name) {
				if err := removeCgroups(ctx, name); err != nil {
					return err
				}
			}
		}
		if err := netlab.Pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("wait until control group %s is removed: %w", names[0], err)
		}
	}
}

// sweepCgroups removes the control groups of clusters whose keeper was killed.
func sweepCgroups(ctx context.Context) error {
	names, err := cgroupNames("*")
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if !kept(name) && !populated(name) {
			errs = append(errs, removeCgroups(ctx, name))
		}
	}
	return errors.Join(errs...)
}

// populated reports whether processes are in a cluster's control groups: one
// that stands may have lost its keeper.
func populated(cluster string) bool {
	dirs, _, err := hierarchies()
	if err != nil {
		return true
	}
	found := false
	for _, dir := range dirs {
		filepath.WalkDir(filepath.Join(dir, cluster), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Name() == "cgroup.procs" {
				b, err := os.ReadFile(path)
				found = found || err == nil && len(b) > 0
			}
			return nil // a group that goes meanwhile is none
		})
	}
	return found
}

// kept reports whether the keeper that made a group still runs.
func kept(name string) bool {
	pid, err := strconv.Atoi(name[strings.LastIndexByte(name, '.')+1:])
	if err != nil {
		return true // not one that we made
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.HasPrefix(string(cmdline), stageKeeper+"\x00")
}
