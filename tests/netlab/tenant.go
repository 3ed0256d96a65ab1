// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A Tenant is the control process of a lab that builds its own network in
// place of New's: it has the lab's namespaces, its end with the launcher, and
// Record.Exec, and nothing else.
type Tenant struct {
	id     string
	report *os.File
}

// NewTenant takes the place of New. It can be called once in a process.
func NewTenant() (*Tenant, error) {
	if !Inside() {
		return nil, errors.New("netlab.NewTenant works only in the control process that Launch starts")
	}
	return &Tenant{id: os.Getenv(IDEnv), report: ownFiles(2)[0]}, nil
}

// ID returns the lab's name.
func (t *Tenant) ID() string { return t.id }

// Stand is Lab.Stand. bin goes in front of PATH in Record.Exec, and places are
// the processes that hold the namespaces of each place, by its name. "fabric"
// is the lab's own.
func (t *Tenant) Stand(ctx context.Context, status int, bin string, places map[string]int) error {
	d := directory{Bin: bin, Places: map[string]door{"fabric": fabricDoor()}}
	r := Record{ID: t.id, Created: now(), Status: status}
	for name, pid := range places {
		d.Places[name] = doorOf(pid)
		r.Nodes = append(r.Nodes, name)
	}
	slices.Sort(r.Nodes)
	return stand(ctx, t.report, d, r)
}

// fabricDoor leads to the lab's network namespace, which is init's.
func fabricDoor() door { return door{Net: "/proc/1/ns/net"} }

// doorOf leads to the namespaces of a process of the lab.
func doorOf(pid int) door {
	ns := fmt.Sprintf("/proc/%d/ns/", pid)
	return door{Net: ns + "net", Mnt: ns + "mnt", UTS: ns + "uts"}
}

func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

// stand hands the launcher what it needs to leave the lab standing, and does
// not return until the lab is ended.
func stand(ctx context.Context, report *os.File, d directory, r Record) error {
	if err := d.write(); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(stateDir, "log", "lab.log"))
	if err != nil {
		return fmt.Errorf("leave the lab standing: %w", err)
	}
	if err := redirect(log, 1, 2); err != nil {
		return err
	}
	if err := r.send(report); err != nil {
		return err
	}
	<-ctx.Done()
	return ctx.Err()
}

// PlaceOf returns the place that process pid is in: its network, mount and UTS
// namespaces.
func PlaceOf(name string, pid int) (*Place, error) { return placeOf(name, pid) }

// Close lets go of the place's namespaces, which end when nothing else holds
// them.
func (p *Place) Close() { p.close() }
