// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"net/netip"
	"os"
	"testing"

	"weft.dev/weft/backend/nft"
	"weft.dev/weft/internal/nshost"
)

func TestMain(m *testing.M) { os.Exit(nshost.Main(m)) }

func dial(t testing.TB, h *nshost.Host) *nft.Conn {
	t.Helper()
	var c *nft.Conn
	h.Do(func() (err error) { c, err = nft.Dial(); return err })
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func mustDump(t testing.TB, c *nft.Conn) nft.Content {
	t.Helper()
	have, err := c.Dump(t.Context(), Table())
	if err != nil {
		t.Fatal(err)
	}
	return have
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
