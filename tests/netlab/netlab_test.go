// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"weft.dev/weft/subnet"
)

// A node's number reads the same in both families.
func TestFabricAddr(t *testing.T) {
	for _, c := range []struct {
		f    subnet.Family
		n    int
		want string
	}{
		{subnet.IPv4, 1, "192.168.77.1"}, {subnet.IPv6, 1, "fd77::1"},
		{subnet.IPv4, 200, "192.168.77.200"}, {subnet.IPv6, 200, "fd77::200"},
		{subnet.IPv4, fabricHost, "192.168.77.254"}, {subnet.IPv6, fabricHost, "fd77::254"},
	} {
		got := fabricAddr(c.f, c.n)
		if got.String() != c.want || !fabricPrefix(c.f).Contains(got) {
			t.Errorf("host %d of %s is %s, want %s in %s", c.n, c.f, got, c.want, fabricPrefix(c.f))
		}
	}
}

// A URL gets etcd's port when it has none; an address or localhost needs no
// line in /etc/hosts and a name does; what is no URL is refused by name.
func TestEndpoints(t *testing.T) {
	for _, c := range []struct{ in, url, addr, failure string }{
		{"http://10.0.0.1:2379", "http://10.0.0.1:2379", "10.0.0.1:2379", ""},
		{"https://[fd00::1]", "https://[fd00::1]:2379", "[fd00::1]:2379", ""},
		{"http://localhost:4001", "http://localhost:4001", "127.0.0.1:4001", ""},
		{"10.0.0.1:2379", "", "", "want a URL like"},
		{"ftp://10.0.0.1", "", "", "want a URL like"},
		{"http://10.0.0.1:http", "", "", "want a URL like"},
	} {
		got, err := ResolveEndpoints(t.Context(), []string{c.in})
		if c.failure != "" {
			if err == nil || !strings.Contains(err.Error(), c.failure) || !strings.Contains(err.Error(), c.in) {
				t.Errorf("%q: %v, want a mention of %q", c.in, err, c.failure)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q: %v", c.in, err)
			continue
		}
		if got[0].URL != c.url || got[0].Addr.String() != c.addr || got[0].hosts() != "" {
			t.Errorf("%q: %+v with hosts line %q, want %s at %s and none", c.in, got[0], got[0].hosts(), c.url, c.addr)
		}
	}
	named := Endpoint{URL: "https://etcd.example:2379", Addr: netip.MustParseAddrPort("10.0.0.1:2379")}
	if got, want := named.hosts(), "10.0.0.1 etcd.example\n"; got != want {
		t.Errorf("hosts line %q, want %q", got, want)
	}
}

// A record is about one process, not about whatever has its number later.
func TestRecordKnowsItsProcess(t *testing.T) {
	r := Record{ID: "lab-test", PID: os.Getpid()}
	if err := r.complete(); err != nil {
		t.Fatal(err)
	}
	if r.Ticks == 0 {
		t.Error("this process started at boot")
	}
	if err := r.Alive(); err != nil {
		t.Errorf("this process: %v", err)
	}
	r.Ticks++
	if err := r.Alive(); err == nil {
		t.Error("a process that started later counts as the lab's")
	}
	if err := (Record{ID: "lab-test", PID: 1 << 22}).Alive(); err == nil { // above pid_max
		t.Error("a process that does not exist counts as the lab's")
	}
}
