// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Generation returns the number of the namespace's nftables transactions so
// far, of everybody. Nothing can have changed while it stays the same, which
// makes it the cheapest audit. The error is ErrUnsupported where the kernel
// has no nf_tables.
func (c *Conn) Generation(ctx context.Context) (uint32, error) {
	var gen uint32
	err := c.ask(ctx, unix.NFT_MSG_GETGEN, unix.NLM_F_ACK, body(unix.NFPROTO_UNSPEC, 0), func(msg []byte) error {
		f, err := split(msg)
		if err != nil {
			return err
		}
		gen, err = be32(f[unix.NFTA_GEN_ID])
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("nftables: read generation: %w", explain(err))
	}
	return gen, nil
}

// Dump returns what the kernel has under t's family and name, all of it or an
// error; the rest of t does not count. No such table is not an error. A kernel
// that does not count its sets' elements can leave some of many out for some
// milliseconds after most were added; adding them again does no harm.
func (c *Conn) Dump(ctx context.Context, t Table) (Content, error) {
	var all map[Element]struct{}
	have, err := c.dump(ctx, t, func() func(string, rawElement) bool {
		all = map[Element]struct{}{}
		return func(set string, e rawElement) bool {
			n := len(all)
			all[Element{Set: set, Key: string(e.key), End: string(e.end), Data: string(e.data)}] = struct{}{}
			return len(all) > n
		}
	})
	if have.Present {
		have.Elements = all
	}
	return have, err
}

// DumpTo is Dump, but hands the keys of elements out one by one instead of
// keeping them. begin is called before the first of them, and once more each
// time that a change makes everything be read again; what it returns is called
// with each element, whose key is valid during the call, and reports whether it
// is new: the kernel may list one twice. It must not use c.
func (c *Conn) DumpTo(ctx context.Context, t Table, begin func() func(set string, key []byte) bool) (Content, error) {
	return c.dump(ctx, t, func() func(string, rawElement) bool {
		each := begin()
		return func(set string, e rawElement) bool { return each(set, e.key) }
	})
}

func (c *Conn) dump(ctx context.Context, t Table, begin func() func(string, rawElement) bool) (Content, error) {
	for range dumpAttempts - 1 {
		have, err := c.dumpOnce(ctx, t, begin())
		// Somebody deleted or changed what was being read.
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EINTR) {
			return have, err
		}
	}
	return c.dumpOnce(ctx, t, begin())
}

func (c *Conn) dumpOnce(ctx context.Context, t Table, each func(string, rawElement) bool) (Content, error) {
	have := newContent()
	fail := func(what string, err error) (Content, error) {
		return Content{}, fmt.Errorf("nftables: dump %s of table %s %s: %w", what, t.Family, t.Name, err)
	}
	name := body(t.Family, 0)
	name.text(unix.NFTA_TABLE_NAME, t.Name) // attribute 1 in every kind of message
	err := c.ask(ctx, unix.NFT_MSG_GETTABLE, unix.NLM_F_ACK, name, func(m []byte) error { return have.readTable(t, m) })
	if errors.Is(err, unix.ENOENT) || err == nil && !have.Present {
		return Content{}, nil
	} else if err != nil {
		return fail("flags", explain(err))
	}
	for _, part := range []struct {
		typ  uint16
		what string
		read func(Table, []byte) error
	}{
		{unix.NFT_MSG_GETCHAIN, "chains", have.readChain},
		{unix.NFT_MSG_GETSET, "sets", have.readSet},
		{unix.NFT_MSG_GETOBJ, "objects", have.readObject},
		{unix.NFT_MSG_GETFLOWTABLE, "flowtables", have.readFlowtable},
	} {
		err := c.whole(ctx, part.typ, name, func() { have.forget(part.typ) }, func(m []byte) error { return part.read(t, m) })
		if err != nil {
			return fail(part.what, err)
		}
	}
	for chain := range have.Chains {
		if err := c.dumpRules(ctx, t, &have, chain); err != nil {
			return fail("rules of chain "+chain, err)
		}
	}
	var keys keyList
	for set := range have.Sets {
		if err := c.dumpElements(ctx, t, &have, set, &keys, each); err != nil {
			return fail("set "+set, err)
		}
	}
	return have, nil
}

// dumpRules reads the rules of one chain. Those of all are more than the kernel
// answers at once, and a list of several answers is interrupted by whatever
// transaction comes between: beside somebody who changes some table all the time
// it would never be whole.
func (c *Conn) dumpRules(ctx context.Context, t Table, have *Content, chain string) error {
	req := body(t.Family, 0)
	req.text(unix.NFTA_RULE_TABLE, t.Name)
	req.text(unix.NFTA_RULE_CHAIN, chain)
	ch := have.Chains[chain]
	err := c.whole(ctx, unix.NFT_MSG_GETRULE, req, func() { ch.Rules = nil }, func(m []byte) error {
		r, of, err := readRule(t, m)
		if err == nil && of == chain {
			ch.Rules = append(ch.Rules, r)
		}
		return err
	})
	have.Chains[chain] = ch
	return err
}

// dumpElements hands out a set's elements when it has them all.
func (c *Conn) dumpElements(ctx context.Context, t Table, have *Content, set string, keys *keyList, each func(string, rawElement) bool) error {
	req := body(t.Family, 0)
	req.text(unix.NFTA_SET_ELEM_LIST_TABLE, t.Name)
	req.text(unix.NFTA_SET_ELEM_LIST_SET, set)
	err := c.whole(ctx, unix.NFT_MSG_GETSETELEM, req, keys.reset, func(m []byte) error { return readElements(t, m, keys) })
	if err != nil {
		return err
	}
	read := 0
	if have.Sets[set].Flags&unix.NFT_SET_INTERVAL != 0 {
		read = keys.len() // ends are counted by some kernels, and not by others
		for _, e := range keys.ranges() {
			each(set, e)
		}
	} else {
		keys.all(func(e rawElement) {
			if each(set, e) {
				read++
			}
		})
	}
	// A set that grows has its hash table resized after the transaction, and a
	// dump that this meets passes over elements without NLM_F_DUMP_INTR.
	if read < have.sizes[set] {
		return fmt.Errorf("it was resized meanwhile: %w", unix.EINTR)
	}
	return nil
}

// whole asks for a list until no change has interrupted it. reset is called
// before each attempt.
func (c *Conn) whole(ctx context.Context, typ uint16, req []byte, reset func(), read func([]byte) error) error {
	var err error
	for range partAttempts {
		reset()
		if err = c.ask(ctx, typ, unix.NLM_F_DUMP, req, read); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return err
}

// SetNames returns the names of the table's sets; none where there is no table.
func (c *Conn) SetNames(ctx context.Context, t Table) (map[string]bool, error) {
	have, err := c.list(ctx, t, unix.NFT_MSG_GETSET, nil, func(have *Content, m []byte) error { return have.readSet(t, m) })
	if err != nil {
		return nil, fmt.Errorf("nftables: list sets of table %s %s: %w", t.Family, t.Name, err)
	}
	names := map[string]bool{}
	for name := range have.Sets {
		names[name] = true
	}
	return names, nil
}

// Counters returns the values of the table's named counters; none where there
// is no table.
func (c *Conn) Counters(ctx context.Context, t Table) (map[string]Counts, error) {
	var counters attrs
	counters.be32(unix.NFTA_OBJ_TYPE, unix.NFT_OBJECT_COUNTER)
	have, err := c.list(ctx, t, unix.NFT_MSG_GETOBJ, counters, func(have *Content, m []byte) error { return have.readObject(t, m) })
	if err != nil {
		return nil, fmt.Errorf("nftables: read counters of table %s %s: %w", t.Family, t.Name, err)
	}
	return have.Counters, nil
}

// list reads all of the table's objects of one type.
func (c *Conn) list(ctx context.Context, t Table, typ uint16, filter attrs, read func(*Content, []byte) error) (Content, error) {
	req := body(t.Family, 0)
	req.text(unix.NFTA_TABLE_NAME, t.Name) // attribute 1 in every kind of message
	req = append(req, filter...)
	var have Content
	err := c.whole(ctx, typ, req, func() { have = newContent() }, func(m []byte) error { return read(&have, m) })
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return Content{}, explain(err)
	}
	return have, nil
}
