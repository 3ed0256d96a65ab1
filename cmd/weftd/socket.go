// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"weft.dev/weft/cmd/internal/api"
)

const (
	// takeoverRetry is the pause between tries while another agent looks at
	// the same socket.
	takeoverRetry = 50 * time.Millisecond
	// takeoverPatience bounds these tries: looking takes whoServes at most
	// half of it.
	takeoverPatience = 5 * time.Second
)

// listenUnix takes over a socket file that no process serves any more: the
// leftover of an agent that was killed. Its directory is locked meanwhile, or
// of two agents that start at once the second would remove the socket that the
// first has just made.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the socket: %w", err)
	}
	wait, cancel := context.WithTimeout(ctx, takeoverPatience)
	defer cancel()
	unlock, err := lockDirectory(wait, dir)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer unlock()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		if err := removeLeftover(ctx, path, err); err != nil {
			return nil, err
		}
		if l, err = lc.Listen(ctx, "unix", path); err != nil {
			return nil, fmt.Errorf("listen on %s: %w", path, err)
		}
	}
	if err := os.Chmod(path, 0o660); err != nil {
		l.Close() // the chmod error is the one to report
		return nil, fmt.Errorf("open %s to its group: %w", path, err)
	}
	return l, nil
}

// removeLeftover removes the socket at path, on which listening failed with
// failed, unless a process serves it or it is no socket.
func removeLeftover(ctx context.Context, path string, failed error) error {
	if holder := whoServes(ctx, path); holder != "" {
		return fmt.Errorf("socket %s is served by %s: stop it first; an agent for another network needs a --socket of its own", path, holder)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("listen on %s: %w: it is no socket, and stays; --socket names another place", path, failed)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("listen on %s: %w", path, failed)
	}
	return nil
}

// lockDirectory waits for the lock (flock(2)) of a directory until ctx ends.
func lockDirectory(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil // closing releases the lock whatever it returns
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || sleep(ctx, takeoverRetry) != nil {
			f.Close() // nothing was written
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
	}
}

// whoServes names the process behind a socket, or nothing if there is none.
func whoServes(ctx context.Context, path string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return ""
	}
	c.Close()
	var s api.Status
	if err := api.Get(ctx, path, api.StatusPath, &s); err != nil {
		return "another program"
	}
	return fmt.Sprintf("weftd %s of node %s", s.Version, s.Node)
}
