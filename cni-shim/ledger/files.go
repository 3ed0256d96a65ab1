// SPDX-License-Identifier: Apache-2.0

package ledger

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// A file is a small file as it was read. Its data must not be modified.
type file struct {
	is      identity
	data    []byte // nil: none of ours
	written time.Time
	state   *record // what the data says, of a state that was read before
}

// An identity tells whether a file is still the one that was read: its plugin
// replaces it or writes it, and either changes its inode or the time of change.
type identity struct {
	dev, ino uint64
	changed  syscall.Timespec
	size     int64
}

// fresh is how long a change of a file may hide another one: the kernel's clock
// of files ticks once a jiffy, of 10 ms at most. A file that was read within
// this time of its change is read again.
const fresh = time.Second

// A reading reads files, those that have not changed since the one before only
// then.
type reading struct {
	before *map[string]file // by path; nil: none
	now    map[string]file
}

// file returns the file at path.
func (r *reading) file(path string) (file, error) {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return file{}, nil
	}
	if err != nil {
		return file{}, fmt.Errorf("read ledger: %w", err)
	}
	is := identityOf(st)
	for _, known := range []*map[string]file{&r.now, r.before} {
		if known == nil {
			continue
		}
		if f, ok := (*known)[path]; ok && f.is == is && is != (identity{}) {
			r.now[path] = f
			return f, nil
		}
	}
	delete(r.now, path)
	data, written, err := readRegular(path)
	if err != nil {
		return file{}, err
	}
	f := file{is: is, data: data, written: written}
	if after, err := os.Stat(path); err != nil || identityOf(after) != is || time.Since(time.Unix(is.changed.Unix())) < fresh {
		f.is = identity{} // no file's
	}
	r.now[path] = f
	return f, nil
}

func identityOf(st os.FileInfo) identity {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return identity{}
	}
	return identity{dev: sys.Dev, ino: sys.Ino, changed: sys.Ctim, size: sys.Size}
}

// readRegular reads a small file and when it was written. data is nil when the
// file is gone meanwhile, and not nil otherwise.
func readRegular(path string) (data []byte, written time.Time, err error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, time.Time{}, nil
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read ledger: %w", err)
	}
	defer f.Close() // only read
	st, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("read ledger: %w", err)
	}
	if st.Size() > maxFile {
		return nil, time.Time{}, nil // no plugin wrote this
	}
	data = make([]byte, st.Size())
	n, err := f.ReadAt(data, 0)
	if n < len(data) {
		return nil, time.Time{}, fmt.Errorf("read ledger: %s: %w", path, err)
	}
	return data, st.ModTime(), nil
}

// maxFile bounds what counts as a state or an address's file, in bytes.
const maxFile = 4 << 20
