// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"time"

	"weft.dev/weft/subnet"
)

// Status is what the Reconciler knows about itself after its last pass. One
// value feeds /readyz, the metrics, `weft status` and the CNI plugin.
type Status struct {
	Synced   bool             // a full sync of peers has succeeded since start
	InSync   bool             // the last pass left nothing to do
	Reason   string           // why not InSync, one sentence; empty when in sync
	Lease    subnet.Lease     // as granted; zero before
	Peers    int              // leases of other nodes that are programmed
	Links    []Link           // own devices as desired, by name
	Pending  Changes          // what the last pass could not apply
	Problems []subnet.Problem // sorted by Kind, Object
	LastPass time.Time        // end of the last pass; zero before the first
	Snapshot time.Time        // when the store last delivered; zero before
}
