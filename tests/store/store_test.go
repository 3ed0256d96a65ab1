// SPDX-License-Identifier: Apache-2.0

// Package store holds the tests of subnet/etcd against real servers: the
// current line of etcd embedded, and the distribution's stock server.
package store

import (
	"testing"

	"weft.dev/weft/tests/etcdtest"
)

// TestStore runs every case on every kind of server, in parallel, each under
// a prefix of its own.
func TestStore(t *testing.T) {
	t.Parallel()
	for _, kind := range etcdtest.Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			srv := etcdtest.New(t, kind, etcdtest.Options{})
			for _, c := range cases() {
				t.Run(c.name, func(t *testing.T) {
					t.Parallel()
					c.test(newEnv(t, srv))
				})
			}
		})
	}
}

type testCase struct {
	name string
	test func(*env)
}

func cases() []testCase {
	return []testCase{
		{"acquire writes flannel's key and value", acquire},
		{"acquire in both families", acquireDual},
		{"acquire IPv6 alone", acquireIPv6Alone},
		{"restart reuses the subnet", restartReuses},
		{"restart with another address updates the value", restartNewAddress},
		{"host set up anew with the same address reuses", reinstalledReuses},
		{"flannel's lease of this address is taken over", takesOverFlannel},
		{"flannel's leases of others are respected", coexistsWithFlannel},
		{"lease that no longer fits is replaced", incompatibleReplaced},
		{"lease that an older one overlaps is replaced", overlappedReplaced},
		{"second family is added to the first", familyAdded},
		{"older lease of ours is removed", duplicateRemoved},
		{"previous subnet is granted again", previousSubnet},
		{"previous subnet that is taken is not", previousTaken},
		{"junk value still occupies its subnet", junkOccupies},
		{"reservation by address stays one", reservationByAddress},
		{"reservation by name stays one", reservationByName},
		{"live lease put without etcd lease becomes a reservation", becomesReservation},
		{"renewal keeps the key past its time to live", renewal},
		{"F8 outage past the time to live", outage},
		{"F16 asleep past the time to live, nobody came", asleepUntaken},
		{"B4 F16 asleep past the time to live, subnet taken", asleepTaken},
		{"F16 asleep past the time to live, overlap taken", asleepOverlapped},
		{"T9 own key deleted comes back", ownKeyDeleted},
		{"own reservation deleted comes back", ownReservationDeleted},
		{"own value altered is mended", ownValueAltered},
		{"own value overwritten with junk is mended", ownValueJunk},
		{"F9 own key taken by another fences", ownKeyTaken},
		{"F15 clone with our instance fences the first", cloneTakesOver},
		{"twin with our instance and address fences the first", twins},
		{"B4 fenced, and asking again", holdAgain},
		{"restart under another name takes the lease along", renamedNode},
		{"restart under another name takes all its leases along", renamedTwice},
		{"another name with another instance or address is another node", otherInstanceStays},
		{"T16 prefix wiped for 3 s", prefixWiped},
		{"T5 B1 one junk key", oneJunkKey},
		{"T13 agent starts before etcd", startsBeforeEtcd},
		{"F10 watch closed by the server", watchClosed},
		{"F11 events that are lost", watchDeaf},
		{"F11 reads from the past", staleReads},
		{"F15 clone with another instance is refused", cloneRefused},
		{"clones race for a new name", func(e *env) { clonesRace(e) }},
		{"clones race for a reserved name", func(e *env) {
			l := at(want(v4(e), 1), "10.42.9.0/24")
			l.Instance = ""
			e.putLease(l, 0)
			clonesRace(e)
		}},
		{"pool exhausted waits", poolExhausted},
		{"racers with subnets of two lengths never overlap", raceOfTwoLengths},
		{"IPv6 alone beside flannel is refused", ipv6AloneBesideFlannel},
		{"configuration is waited for", configWaits},
		{"configuration that changes is told", configChanges},
		{"F34 configuration that is pushed is told, bad or good", configWatched},
		{"configuration that changes in a burst: the last wins", configBurst},
		{"configuration that changes in a gap, compacted and half-open", configGap},
		{"configuration watch that starts before etcd", configBeforeEtcd},
		{"watch follows a MAC change", watchMAC},
		{"watch reads page by page", watchPages},
		{"watch goes on after a new connection", reconnects},
		{"watch is silent when nothing changes", watchSilent},
		{"B1 watch ignores a neighbouring prefix", watchNeighbour},
		{"T17 watch survives junk", watchJunk},
		{"B2 T15 watch survives compaction with peers changed in the gap", watchCompaction},
		{"B5 watch that starts before etcd", watchBeforeEtcd},
		{"F8 watch notices half-open TCP", watchHalfOpen},
		{"F8 watch notices a black hole", watchBlackHole},
		{"close leaks nothing", closeLeaksNothing},
	}
}
