// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// RecordDir holds one file for each lab that was left standing. It exists
// only while there is one.
const RecordDir = "/run/weft-lab"

// A Record says where a standing lab is. The process ID is the one of the
// lab's init, and Ticks tells it from a later process with the same number.
type Record struct {
	ID      string    `json:"id"`
	PID     int       `json:"pid"`
	Ticks   uint64    `json:"ticks"` // start time, clock ticks after boot (field 22 of proc_pid_stat(5))
	Created time.Time `json:"created"`
	Nodes   []string  `json:"nodes"`
	Pods    []string  `json:"pods"`
	Status  int       `json:"status"` // what Launch.Run returns for it
	Etcd    Outside   `json:"etcd"`   // for the launcher to fill in and clean
}

// errGone is returned for a record whose lab has ended.
var errGone = errors.New("the lab has ended")

func recordPath(id string) string { return filepath.Join(RecordDir, id+".json") }

// Save writes the record. It fails if a lab of that ID stands already.
func (r Record) Save() error {
	if old, err := LoadRecord(r.ID); err == nil && old.Alive() == nil {
		return fmt.Errorf("a lab %s stands already, as process %d", r.ID, old.PID)
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("record of lab %s: %w", r.ID, err)
	}
	if err := os.MkdirAll(RecordDir, 0o755); err != nil {
		return fmt.Errorf("record of lab %s: %w", r.ID, err)
	}
	if err := os.WriteFile(recordPath(r.ID), append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("record of lab %s: %w", r.ID, err)
	}
	return nil
}

// LoadRecord reads the record of one lab.
func LoadRecord(id string) (Record, error) {
	var r Record
	b, err := os.ReadFile(recordPath(id))
	if errors.Is(err, fs.ErrNotExist) {
		return r, fmt.Errorf("no lab %s stands", id)
	}
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return r, fmt.Errorf("record of lab %s: %w", id, err)
	}
	return r, nil
}

// Records returns the labs that stand, ordered by ID, and forgets those that
// have ended.
func Records() ([]Record, error) {
	files, err := filepath.Glob(recordPath("*"))
	if err != nil {
		return nil, err
	}
	var out []Record
	for _, f := range files {
		r, err := LoadRecord(strings.TrimSuffix(filepath.Base(f), ".json"))
		if err != nil {
			return nil, err
		}
		switch err := r.Alive(); {
		case err == nil:
			out = append(out, r)
		case errors.Is(err, errGone):
			if err := r.remove(); err != nil {
				return nil, err
			}
		default:
			return nil, err
		}
	}
	return out, nil
}

// Alive returns nil if the lab still runs.
func (r Record) Alive() error {
	ticks, err := startTicks(r.PID)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) || (err == nil && ticks != r.Ticks) {
		return fmt.Errorf("lab %s: %w", r.ID, errGone)
	}
	return err
}

// Down ends the lab and forgets its record. When it returns, no process of
// the lab is left.
func (r Record) Down() error {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return r.remove()
	}
	if err != nil {
		return fmt.Errorf("end lab %s: open process %d: %w", r.ID, r.PID, err)
	}
	defer unix.Close(fd)
	// The descriptor is of one process for good, so what is checked now is
	// what the signal goes to.
	if err := r.Alive(); errors.Is(err, errGone) {
		return r.remove()
	} else if err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end lab %s: kill process %d: %w", r.ID, r.PID, err)
	}
	// A PID namespace's init can be waited for only after all others of it.
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1)
		if err == nil {
			return r.remove()
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("end lab %s: wait for process %d: %w", r.ID, r.PID, err)
		}
	}
}

// remove deletes the file, and the directory if it was the last.
func (r Record) remove() error {
	if err := os.Remove(recordPath(r.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget lab %s: %w", r.ID, err)
	}
	if err := os.Remove(RecordDir); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("forget lab %s: %w", r.ID, err)
	}
	return nil
}

// complete adds what only the launcher knows: PID is set, in its namespace.
func (r *Record) complete() (err error) {
	r.Ticks, err = startTicks(r.PID)
	return err
}

// startTicks returns field 22 of /proc/PID/stat. The second field is the
// program's name in parentheses, which may itself hold anything.
func startTicks(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("start time of process %d: %w", pid, err)
	}
	rest := b[bytes.LastIndexByte(b, ')')+1:]
	fields := strings.Fields(string(rest)) // from field 3 on
	if len(fields) < 20 {
		return 0, fmt.Errorf("start time of process %d: /proc/%d/stat has %d fields", pid, pid, len(fields)+2)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// record describes the lab for its launcher.
func (l *Lab) record(status int) Record {
	r := Record{ID: l.id, Created: now(), Status: status}
	for _, n := range l.Nodes() {
		r.Nodes = append(r.Nodes, n.name)
	}
	for _, p := range l.Pods() {
		r.Pods = append(r.Pods, p.name)
	}
	return r
}

// send hands the record to the launcher.
func (r Record) send(w io.Writer) error {
	if err := json.NewEncoder(w).Encode(r); err != nil {
		return fmt.Errorf("hand the lab's record to the launcher: %w", err)
	}
	return nil
}
