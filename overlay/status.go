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
	MTU      int              // for pods: of the smallest device, or underlay where there is none; bytes, 0 before the first pass
	Hold     *Hold            // a mass removal that waits; nil when there is none
	Repairs  uint64           // passes since start that undid what somebody else had changed
	Pending  Changes          // what the last pass could not apply
	Problems []subnet.Problem // sorted by Kind, Object
	LastPass time.Time        // end of the last pass; zero before the first
	LastLook time.Time        // when the whole kernel was last compared; quick passes do not
	Snapshot time.Time        // when the store last delivered; zero before
}

// Hold is a mass removal that waits: the store's last snapshot would remove
// more than half of the peers' subnets of a family, and more than three.
type Hold struct {
	Since  time.Time
	Until  time.Time // when it is made unless the peers come back
	Routes int       // peers' routes that are kept although no lease asks for them
}
