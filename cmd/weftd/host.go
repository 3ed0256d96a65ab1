// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
	"github.com/sirupsen/logrus"
)

// instanceID returns the random id of this node's state directory, creating
// it once. Two machines cloned from one image that already ran weftd share
// it; two machines that merely share a node name do not, and the store tells
// them apart by it.
func instanceID(dir string) (string, error) {
	path := filepath.Join(dir, "instance-id")
	b, err := os.ReadFile(path)
	if err == nil {
		id := strings.TrimSpace(string(b))
		if raw, err := hex.DecodeString(id); err != nil || len(raw) != 16 {
			return "", fmt.Errorf("%s holds %q: want 32 hexadecimal digits; remove the file to get a new id", path, id)
		}
		return id, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the instance id: %w", err)
	}
	var raw [16]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return "", fmt.Errorf("make an instance id: %w", err)
	}
	id := hex.EncodeToString(raw[:])
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the state directory: %w", err)
	}
	if err := renameio.WriteFile(path, []byte(id+"\n"), 0o644); err != nil {
		return "", fmt.Errorf("write the instance id: %w", err)
	}
	return id, nil
}

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

// lock makes sure that one weftd serves a VNI in this network namespace, for
// two would undo each other's work. The error names the holder. The lock
// goes with the process, however it ends; unlock releases it earlier.
func lock(dir string, vni uint32, node string) (unlock func(), err error) {
	var ns syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/net", &ns); err != nil {
		return nil, fmt.Errorf("identify the network namespace: %w", err)
	}
	path := filepath.Join(dir, fmt.Sprintf("weftd-%d-%d.lock", ns.Ino, vni))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the lock of VNI %d: %w", vni, err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		holder, _ := os.ReadFile(path)
		f.Close() // nothing was written
		return nil, fmt.Errorf("VNI %d in this network namespace is served by another weftd (%s): stop it first, or give this one another network (%s: %w)",
			vni, strings.TrimSpace(string(holder)), path, err)
	}
	// The text is for the error above only; a full disk must not stop us.
	_ = errors.Join(f.Truncate(0), writeAt(f, fmt.Sprintf("pid %d, node %s\n", os.Getpid(), node)))
	return func() { f.Close() }, nil // closing releases the lock whatever it returns
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

func newLogger(o *options, w io.Writer) *logrus.Logger {
	log := logrus.New()
	log.SetOutput(w)
	log.SetLevel(o.LogLevel)
	log.SetFormatter(&logrus.TextFormatter{DisableColors: true, FullTimestamp: true})
	return log
}
