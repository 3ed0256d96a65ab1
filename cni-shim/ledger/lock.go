// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// flightDir is the directory of locks and temporary files below the states.
// No container id starts with a dot.
const flightDir = ".flight"

const (
	lockSuffix = ".lock"
	newSuffix  = ".new"
)

// ErrBusy says that a process holds the lock.
var ErrBusy = errors.New("another process holds the lock")

// Lock is the lock of one attachment, held.
type Lock struct {
	fd   int
	path string
}

// LockAttachment takes the lock of attachment k, and waits for it until ctx
// ends; then the error is ErrBusy. It makes the directories it needs.
//
// The lock's descriptor is inherited by every process that the caller starts,
// so that a delegate that outlives the plugin keeps the lock. The caller must
// be one that starts processes for this attachment alone while it has it.
func LockAttachment(ctx context.Context, stateDir string, k Key) (*Lock, error) {
	return lockAttachment(ctx, stateDir, k, 0)
}

// tryLock takes the lock of attachment k if nobody holds it; else the error
// is ErrBusy. Other processes do not inherit it: a sweep may be part of a
// program that starts any.
func tryLock(stateDir string, k Key) (*Lock, error) {
	now, cancel := context.WithCancel(context.Background())
	cancel()
	return lockAttachment(now, stateDir, k, syscall.O_CLOEXEC)
}

func lockAttachment(ctx context.Context, stateDir string, k Key, flags int) (*Lock, error) {
	dir := filepath.Join(stateDir, flightDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create dataDir: %w", err)
	}
	path := filepath.Join(dir, k.String()+lockSuffix)
	for {
		l, err := lockFile(ctx, path, flags)
		if err != nil || l != nil {
			return l, err
		}
	}
}

// lockFile opens and locks path. It returns nil when path was removed
// meanwhile, which is how a holder ends: the lock is then that of a file that
// nobody else will find.
func lockFile(ctx context.Context, path string, flags int) (*Lock, error) {
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CREAT|flags, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if err := flock(ctx, fd, path); err != nil {
		_ = syscall.Close(fd)
		return nil, err
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil || st.Nlink == 0 {
		_ = syscall.Close(fd)
		return nil, err
	}
	return &Lock{fd: fd, path: path}, nil
}

// flock takes an exclusive lock. flock(2) itself cannot be interrupted by a
// context, so it is asked again and again: locks are held for milliseconds.
func flock(ctx context.Context, fd int, path string) error {
	const first, most = time.Millisecond, 50 * time.Millisecond
	for wait := first; ; wait = min(2*wait, most) {
		err := syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB)
		switch err {
		case nil:
			return nil
		case syscall.EINTR:
			continue
		case syscall.EWOULDBLOCK:
		default:
			return &os.PathError{Op: "lock", Path: path, Err: err}
		}
		if ctx.Err() != nil {
			return fmt.Errorf("lock %s: %w", path, ErrBusy)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// Unlock removes the lock's file and gives the lock back, in this order, so
// that whoever waited for it finds the file gone and makes a new one. A file
// that cannot be removed stays, unlocked, and does no harm.
func (l *Lock) Unlock() {
	_ = os.Remove(l.path)
	_ = syscall.Close(l.fd)
}

// held reports whether some process holds the lock file at path.
func held(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	switch err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err {
	case nil:
		return false, nil
	case syscall.EWOULDBLOCK:
		return true, nil
	default:
		return false, &os.PathError{Op: "lock", Path: path, Err: err}
	}
}
