// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"weft.dev/weft/backend"
	"weft.dev/weft/cni-shim/ledger"
	"weft.dev/weft/overlay"
	"weft.dev/weft/subnet"
)

// cleanupPasses is how often the kernel is compared with nothing at most.
const cleanupPasses = 3

// cleaner takes weft off a node. It needs neither etcd nor agent: what is
// weft's is seen on the thing itself.
type cleaner struct {
	o   *options
	out io.Writer
	l   locks
	// addresses is where host-local keeps those it has given out.
	addresses string
	// trace is what our agent has written on this node's Node; nil if nothing.
	trace *trace
}

// cleanup removes what weftd has made on this node and says what it removed
// and what is left. It refuses while an agent runs here.
func cleanup(ctx context.Context, o *options, out io.Writer) error {
	t, unread := o.recall()
	if t != nil {
		o.NodeName = t.Node // from which our devices' MACs are derived
	}
	l, err := locksFor(o)
	if err != nil {
		return err
	}
	addresses := filepath.Join(ledger.DefaultAllocDir, presetFor(o.FlannelCompat).cniNetwork)
	return errors.Join(unread, (&cleaner{o, out, l, addresses, t}).run(ctx))
}

// run does one thing after the other; what fails does not keep the rest from
// being done.
func (c *cleaner) run(ctx context.Context) error {
	held, unlock, err := c.lockOut(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	err = errors.Join(c.kernel(ctx), c.pods(ctx), c.files(), c.node(ctx))
	for _, path := range held { // while they are ours
		err = errors.Join(err, c.remove("lock", path))
	}
	// Only when nothing of anybody's is left in it.
	_ = os.Remove(filepath.Dir(c.o.Socket))
	if kept := filepath.Join(c.o.StateDir, "instance-id"); c.trace != nil {
		c.say("kept: %s, by which peers know this node again", kept)
	} else {
		c.say("kept: %s, by which this node gets its subnet again; its key in the store expires with its lease", kept)
	}
	return err
}

func (c *cleaner) say(format string, args ...any) { fmt.Fprintf(c.out, format+"\n", args...) }

// lockOut takes every lock there is for this network namespace, so that no
// agent runs meanwhile, and returns the files. It fails when one runs already.
func (c *cleaner) lockOut(ctx context.Context) (paths []string, unlock func(), err error) {
	all, err := c.l.all()
	if err != nil {
		return nil, nil, err
	}
	var unlocks []func()
	unlock = func() {
		for _, u := range unlocks {
			u()
		}
	}
	for _, what := range all {
		u, holder, err := c.l.take(what)
		if err != nil {
			unlock()
			if errors.Is(err, errLocked) {
				err = fmt.Errorf("weftd still runs in this network namespace (%s): stop it first", holder)
			}
			return nil, nil, err
		}
		unlocks, paths = append(unlocks, u), append(paths, c.l.path(what))
	}
	if holder := whoServes(ctx, c.o.Socket); holder != "" {
		unlock()
		return nil, nil, fmt.Errorf("socket %s is served by %s: stop it first", c.o.Socket, holder)
	}
	return paths, unlock, nil
}

// kernel removes devices and routes, and then the nftables tables: the first
// guards the devices as long as they are there.
func (c *cleaner) kernel(ctx context.Context) error {
	devices, err := c.devices(ctx)
	if err == nil {
		err = c.clear(ctx, backend.Options{Devices: devices})
	}
	return errors.Join(err, c.clear(ctx, backend.Options{Filter: true}), c.policies(ctx))
}

// policies removes the tables of policies: nobody would keep them any more.
func (c *cleaner) policies(ctx context.Context) error {
	removed, err := removePolicies(ctx)
	for _, name := range removed {
		c.say("removed nftables table %s", name)
	}
	return err
}

// clear removes all that a kernel made with o finds: the difference between
// what is there and nothing.
func (c *cleaner) clear(ctx context.Context, o backend.Options) error {
	k, err := backend.New(o)
	if err != nil {
		return err
	}
	defer k.Close()
	var tried overlay.Changes
	var failed error
	for pass := 0; ; pass++ {
		have, err := k.Dump(ctx, overlay.Digest{})
		if err != nil {
			return fmt.Errorf("read the kernel's state: %w", err)
		}
		left := overlay.Diff(overlay.NewState(), have)
		for _, ch := range tried {
			if !slices.Contains(left, ch) {
				c.sayRemoved(ch.Entry)
			}
		}
		if left.Empty() {
			return nil
		}
		if pass == cleanupPasses {
			return cmp.Or(failed, fmt.Errorf("%d entries did not go, the first: %s", len(left), left[0]))
		}
		tried, failed = left, k.Apply(ctx, left)
	}
}

// sayRemoved names what is gone and does not go with something else.
func (c *cleaner) sayRemoved(e overlay.Entry) {
	switch e := e.(type) {
	case overlay.Link:
		c.say("removed device %s", e.Name)
	case overlay.Route:
		c.say("removed route %s", e)
	case overlay.Filter:
		c.say("removed nftables table inet weft")
	}
}

// devices are weft's VXLAN devices, of whatever VNI. A device with flannel's
// name is weft's when it has the MAC that weft would give it or carries routes
// with weft's mark; others may be a flanneld's, and are only named.
func (c *cleaner) devices(ctx context.Context) ([]string, error) {
	names := presetFor(c.o.FlannelCompat).names
	all, err := backend.OwnDevices(ctx, stems(names))
	if err != nil || !c.o.FlannelCompat {
		return all, err
	}
	k, err := backend.New(backend.Options{Devices: all})
	if err != nil {
		return nil, err
	}
	defer k.Close()
	have, err := k.Dump(ctx, overlay.Digest{})
	if err != nil {
		return nil, fmt.Errorf("read the kernel's state: %w", err)
	}
	var ours []string
	for _, d := range all {
		if c.marked(have, d) {
			ours = append(ours, d)
			continue
		}
		c.say("left: %s bears no mark of weft and may be a flanneld's; otherwise: ip link del %[1]s", d)
	}
	return ours, nil
}

// marked reports whether something on device d in have shows that weft made it
// what it is.
func (c *cleaner) marked(have overlay.State, d string) bool {
	for r := range have.Routes {
		if r.Dev == d && r.Proto == overlay.RouteProtocol {
			return true
		}
	}
	for l := range have.Links {
		if l.Name == d && l.MAC == subnet.DeriveMAC(macNetwork, l.VNI, subnet.FamilyOf(l.Local), c.o.NodeName) {
			return true
		}
	}
	return false
}

// files removes what weftd has written, but for the CNI configuration that an
// operator has made his own.
func (c *cleaner) files() error {
	var errs []error
	conf, err := os.ReadFile(c.o.CNIConf)
	switch {
	case c.o.CNIConf == "" || errors.Is(err, os.ErrNotExist):
	case err != nil:
		errs = append(errs, fmt.Errorf("read the CNI configuration: %w", err))
	case generated(conf):
		errs = append(errs, c.remove("CNI configuration", c.o.CNIConf))
	default:
		c.say("left: %s, which is not as weftd wrote it", c.o.CNIConf)
	}
	return errors.Join(append(errs, c.remove("subnet file", c.o.SubnetFile), c.remove("socket", c.o.Socket))...)
}

// remove removes a file and says so; one that is not there is no error.
func (c *cleaner) remove(what, path string) error {
	err := os.Remove(path)
	switch {
	case err == nil:
		c.say("removed %s %s", what, path)
		return nil
	case errors.Is(err, os.ErrNotExist):
		return nil
	}
	return fmt.Errorf("remove %s: %w", what, err)
}

// pods lists what pods on this node still use, and removes it with --force or
// when there are none.
func (c *cleaner) pods(ctx context.Context) error {
	pods, err := backend.Attachments(ctx, bridge)
	if err != nil {
		return fmt.Errorf("list the pods on bridge %s: %w", bridge, err)
	}
	if !c.o.Force && len(pods) > 0 {
		c.listPods(pods)
		return nil
	}
	var errs []error
	for _, p := range pods {
		if err := backend.DeleteVeth(ctx, p.Host, p.Index); err != nil {
			errs = append(errs, fmt.Errorf("remove pod interface %s: %w", p.Host, err))
			continue
		}
		c.say("removed pod interface %s", podText(p))
	}
	found, err := backend.DeleteBridge(ctx, bridge)
	if found && err == nil {
		c.say("removed bridge %s", bridge)
	}
	return errors.Join(append(errs, err, c.ledger())...)
}

func (c *cleaner) listPods(pods []backend.Attachment) {
	c.say("left: bridge %s and the interfaces of %d pods on it, which reach each other but no other node; --cleanup --force removes it and cuts them off", bridge, len(pods))
	for _, p := range pods {
		c.say("  %s", podText(p))
	}
}

func podText(p backend.Attachment) string {
	var addrs []string
	for _, a := range p.Addrs {
		addrs = append(addrs, a.String())
	}
	if p.Unreadable != nil {
		addrs = []string{"addresses unknown: " + p.Unreadable.Error()}
	}
	slices.Sort(addrs)
	return strings.TrimSpace(p.Host + " " + strings.Join(addrs, " "))
}
