// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/sirupsen/logrus"

	"weft.dev/weft/backend"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// claim makes sure that no other agent works on what this one will: the
// devices of its VNI, and the nftables table if it needs one. What an agent
// with other settings has left behind is removed: no agent would ever again.
func (a *agent) claim(ctx context.Context, vni uint32) (unlock func(), err error) {
	l, err := locksFor(a.o)
	if err != nil {
		return nil, err
	}
	return a.claimWith(ctx, l, vni)
}

func (a *agent) claimWith(ctx context.Context, l locks, vni uint32) (unlock func(), err error) {
	unlockVNI, err := l.vni(vni)
	if err != nil {
		return nil, err
	}
	unlock = unlockVNI
	if a.o.filters() || a.o.enforces() {
		unlockTable, err := l.table()
		if err != nil {
			unlockVNI()
			return nil, err
		}
		unlock = func() { unlockTable(); unlockVNI() }
	} else if err := a.dropTable(ctx, l); err != nil {
		a.log.WithField("err", err).Warn("a table inet weft of former settings may be left")
	}
	if err := a.dropFormer(ctx, l, vni); err != nil {
		a.log.WithField("err", err).Warn("devices of a former VNI may be left")
	}
	return unlock, nil
}

// dropTable removes the table of an agent that ran with a guard or
// masquerading here before, unless it still runs.
func (a *agent) dropTable(ctx context.Context, l locks) error {
	unlock, _, err := l.take(tableLock)
	if errors.Is(err, errLocked) {
		return nil // it is somebody's
	}
	if err != nil {
		return err
	}
	defer unlock()
	k, err := backend.New(backend.Options{Filter: true, Log: a.log})
	if err != nil {
		return err
	}
	defer k.Close()
	if _, err := removePolicies(ctx); err != nil {
		return err
	}
	have, err := k.Dump(ctx, overlay.Digest{})
	if err != nil {
		return err
	}
	only := overlay.NewState()
	only.Filters, only.Nodes, only.Sources, only.Pods = have.Filters, have.Nodes, have.Sources, have.Pods
	return k.Apply(ctx, overlay.Diff(overlay.NewState(), only))
}

// dropFormer removes the devices of other VNIs than vni that no agent serves.
// With flannel's names they are left alone: a flanneld may serve them, and it
// takes no lock of ours.
func (a *agent) dropFormer(ctx context.Context, l locks, vni uint32) error {
	if a.o.FlannelCompat {
		return nil
	}
	names := presetFor(false).names
	devices, err := backend.OwnDevices(ctx, stems(names))
	if err != nil {
		return err
	}
	var errs []error
	for _, d := range devices {
		former, ok := vniOf(names, d)
		if !ok || former == vni {
			continue
		}
		unlock, _, err := l.take(fmt.Sprint(former))
		if errors.Is(err, errLocked) {
			continue // another agent's
		}
		if err == nil {
			err = dropDevices(ctx, a.log, d)
			unlock()
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove device %s: %w", d, err))
			continue
		}
		a.log.WithField("dev", d).Infof("removed the device of VNI %d, which this network had before", former)
	}
	return errors.Join(errs...)
}

// dropDevices removes devices and with them what is on them.
func dropDevices(ctx context.Context, log logrus.FieldLogger, devices ...string) error {
	k, err := backend.New(backend.Options{Devices: devices, Log: log})
	if err != nil {
		return err
	}
	defer k.Close()
	have, err := k.Dump(ctx, overlay.Digest{})
	if err != nil {
		return err
	}
	links := overlay.NewState()
	links.Links = have.Links
	return k.Apply(ctx, overlay.Diff(overlay.NewState(), links))
}

// stems are the beginnings of our devices' names.
func stems(names overlay.Names) []string {
	var out []string
	for _, f := range subnet.Families() {
		out = append(out, names[f])
	}
	return out
}

// vniOf returns the VNI in the name of one of our devices.
func vniOf(names overlay.Names, device string) (uint32, bool) {
	for _, stem := range stems(names) {
		if digits, ok := strings.CutPrefix(device, stem); ok {
			vni, err := strconv.ParseUint(digits, 10, 24)
			return uint32(vni), err == nil
		}
	}
	return 0, false
}
