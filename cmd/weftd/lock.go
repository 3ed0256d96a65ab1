// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"weft.dev/weft/cmd/internal/api"
)

// lockDir is where agents look for each other: usual, whatever socket each
// was given, or two of them would not meet. own is for where usual cannot be
// written.
func lockDir(usual, own string) string {
	const writable = 2 // W_OK of access(2)
	if os.MkdirAll(usual, 0o755) == nil && syscall.Access(usual, writable) == nil {
		return usual
	}
	return own
}

// locks are the directory of the locks and the network namespace they are
// for. Each lock is a file that names its holder; the lock itself is the
// kernel's, and goes with the process, however it ends.
type locks struct {
	dir    string
	netns  uint64 // inode number of the namespace
	holder string // what our own locks say
}

// locksFor returns the locks of the calling process's network namespace.
func locksFor(o *options) (locks, error) {
	var ns syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/net", &ns); err != nil {
		return locks{}, fmt.Errorf("identify the network namespace: %w", err)
	}
	return locks{
		dir:   lockDir(filepath.Dir(api.DefaultSocket), filepath.Dir(o.Socket)),
		netns: ns.Ino, holder: fmt.Sprintf("pid %d, node %s", os.Getpid(), o.NodeName),
	}, nil
}

// tableLock is the name of the lock of nftables table inet weft; that of a
// VNI is its number.
const tableLock = "nft"

func (l locks) path(what string) string {
	return filepath.Join(l.dir, fmt.Sprintf("weftd-%d-%s.lock", l.netns, what))
}

// all returns what there are lock files for in this network namespace, held
// or left by a process that is gone.
func (l locks) all() ([]string, error) {
	files, err := filepath.Glob(l.path("*"))
	if err != nil {
		return nil, fmt.Errorf("list locks: %w", err)
	}
	var out []string
	for _, f := range files {
		what := strings.TrimPrefix(filepath.Base(f), fmt.Sprintf("weftd-%d-", l.netns))
		out = append(out, strings.TrimSuffix(what, ".lock"))
	}
	return out, nil
}

// errLocked says that another process holds a lock.
var errLocked = errors.New("locked")

// vni makes sure that one weftd serves a VNI in this network namespace, for
// two would undo each other's work. The error names the holder.
func (l locks) vni(vni uint32) (unlock func(), err error) {
	unlock, holder, err := l.take(fmt.Sprint(vni))
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("VNI %d in this network namespace is served by another weftd (%s): stop it first, or give this one another network (%s: %w)",
			vni, holder, l.path(fmt.Sprint(vni)), err)
	}
	return unlock, err
}

// table makes sure that one weftd owns nftables table inet weft in this
// network namespace. The error names the holder.
func (l locks) table() (unlock func(), err error) {
	unlock, holder, err := l.take(tableLock)
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("nftables table inet weft in this network namespace belongs to another weftd (%s), and there is one only: run this one with --ingress-guard=off --ip-masq=false --network-policy=false, or stop the other (%s: %w)",
			holder, l.path(tableLock), err)
	}
	return unlock, err
}

// take takes a lock, or returns errLocked and what the holder says of itself.
func (l locks) take(what string) (unlock func(), holder string, err error) {
	path := l.path(what)
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return nil, "", fmt.Errorf("open a lock: %w", err)
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			text, _ := os.ReadFile(path)
			f.Close() // nothing was written
			if errors.Is(err, syscall.EWOULDBLOCK) {
				err = errLocked
			}
			return nil, strings.TrimSpace(string(text)), err
		}
		if !stillAt(f, path) {
			f.Close() // somebody removed it (--cleanup); the next one counts
			continue
		}
		// The text is for errors only; a full disk must not stop us.
		_ = errors.Join(f.Truncate(0), writeAt(f, l.holder+"\n"))
		return func() { f.Close() }, "", nil // closing releases the lock whatever it returns
	}
}

// stillAt reports whether path names the open file f.
func stillAt(f *os.File, path string) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Stat(path)
	return err == nil && os.SameFile(open, named)
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}
