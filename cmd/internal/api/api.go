// SPDX-License-Identifier: Apache-2.0

// Package api is the language between the agent and its readers: the JSON
// documents that weftd serves on its unix socket, and the client with which
// `weft` fetches them. Fields are only ever added, never renamed, so that an
// agent and a CLI of neighbouring versions understand each other; "ready" and
// "reason" are also read by the CNI plugin.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"time"

	"weft.dev/weft/subnet"
)

// DefaultSocket is where the agent listens unless --socket says otherwise.
const DefaultSocket = "/run/weft/weftd.sock"

// The paths of the documents below the socket. ReleasePath is not read but
// posted to; ProfilePath is followed by the name of a profile of the agent,
// "cpu", "heap" or another of runtime/pprof. AdmitPath is posted to by the CNI
// plugin, followed by container/interface: the answer is 204 when the policies
// for this pod are in force, 404 when the agent enforces none, and else says why
// the pod cannot start yet.
const (
	StatusPath  = "/v1/status"
	PlanPath    = "/v1/plan"
	ReleasePath = "/v1/peers/release"
	ProfilePath = "/v1/profile/"
	AdmitPath   = "/v1/admit/"
	PolicyPath  = "/v1/policies"
	ExplainPath = "/v1/policies/explain"
	RulesPath   = "/v1/policies/rules"
)

// maxDocument bounds what the client reads: 20,000 peers at 400 bytes each.
const maxDocument = 64 << 20

// Status is the document at StatusPath.
type Status struct {
	Ready    bool             `json:"ready"`            // a pod started now would have its network
	Reason   string           `json:"reason,omitempty"` // why not ready, one sentence
	Node     string           `json:"node"`
	Version  string           `json:"version"`
	Store    string           `json:"store"`    // e.g. "etcd http://10.0.0.1:2379 /weft/network"
	Networks string           `json:"networks"` // the pod networks, and who says so where that is not the configuration
	Subnets  []netip.Prefix   `json:"subnets"`
	Devices  []Device         `json:"devices"`
	Peers    []Peer           `json:"peers"`
	Down     string           `json:"down,omitempty"` // why this node's own devices or table have not been what they should be for 30 s
	Reached  int              `json:"reached"`        // how many of Peers the kernel should know; the rest have Problems
	InSync   bool             `json:"inSync"`
	Repairs  uint64           `json:"repairs"` // passes since start that undid what somebody else had changed
	Guard    Guard            `json:"guard"`
	Policy   *Policy          `json:"policy,omitempty"` // absent: no NetworkPolicies are enforced
	Hold     *Hold            `json:"hold,omitempty"`   // a mass removal that waits
	Pending  []Change         `json:"pending"`
	Problems []subnet.Problem `json:"problems"`
	LastPass *time.Time       `json:"lastPass,omitempty"`
	Snapshot *time.Time       `json:"snapshot,omitempty"` // when the store last delivered
}

// Guard is what weft's nftables table does, and has done.
type Guard struct {
	Mode       string            `json:"mode"`              // bind, peers or off
	Masquerade bool              `json:"masquerade"`        // what pods send out of the pod networks
	Refused    map[string]uint64 `json:"refused,omitempty"` // packets since the table was made, by reason; absent while they cannot be read
}

// Policy is how far NetworkPolicies are in force on this node.
type Policy struct {
	InForce  bool              `json:"inForce"`
	Reason   string            `json:"reason,omitempty"`  // why not, one sentence; what was in force before still is
	Policies int               `json:"policies"`          // in the cluster
	Pods     int               `json:"pods"`              // addresses of this node's pods
	Isolated map[string]int    `json:"isolated"`          // of those, by direction
	Guarded  int               `json:"guarded"`           // pods' links that only their own addresses may send by
	Rows     int               `json:"rows"`              // of the compiled table
	Denied   map[string]uint64 `json:"denied,omitempty"`  // packets since the table was made, by reason; absent while they cannot be read
	Spoofed  map[string]uint64 `json:"spoofed,omitempty"` // frames that pods may not send, likewise
}

// Policies is the document at PolicyPath, in the order of namespaces and names.
type Policies struct {
	Policies []PolicyRow `json:"policies"`
}

// PolicyRow is one NetworkPolicy.
type PolicyRow struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Isolates  []string `json:"isolates"` // directions
	Pods      []string `json:"pods"`     // of this node that it selects, as namespace/name
}

// Explanation is the document at ExplainPath, which takes the query parameters
// src and dst (an address, or namespace/name of a pod), proto (TCP, UDP, SCTP or
// a number; default TCP) and port.
type Explanation struct {
	Allowed bool   `json:"allowed"`
	Text    string `json:"text"` // for people; see policy.Explanation
	// Here is what this node's compiled table says, which speaks of its own pods
	// only; Kernel whether the kernel holds that table.
	Here   bool   `json:"here"`
	Kernel string `json:"kernel"` // "as compiled", or in what it differs
}

// Rules is the document at RulesPath.
type Rules struct {
	NFT string `json:"nft"` // the table as commands of the nft program
}

// Hold is a mass removal that waits: the store has lost most of the peers at
// once.
type Hold struct {
	Since  time.Time `json:"since"`
	Until  time.Time `json:"until"`  // when it is made unless the peers come back
	Routes int       `json:"routes"` // that are kept although no lease asks for them
}

// Released is the answer to a post at ReleasePath.
type Released struct {
	Routes int `json:"routes"` // how many were held; 0 when nothing was
}

// Device is one of our VXLAN devices, as desired.
type Device struct {
	Name     string     `json:"name"`
	VNI      uint32     `json:"vni"`
	Port     uint16     `json:"port"`
	MAC      subnet.MAC `json:"mac"`
	MTU      int        `json:"mtu"`
	Local    netip.Addr `json:"local"`
	Underlay string     `json:"underlay"`
}

// Peer is another node's lease.
type Peer struct {
	Node  string     `json:"node,omitempty"` // empty for a node that flannel runs
	Paths []PeerPath `json:"paths"`
}

// PeerPath is one subnet of a peer and where it is reached.
type PeerPath struct {
	Subnet   netip.Prefix `json:"subnet"`
	Underlay netip.Addr   `json:"underlay"`
	MAC      subnet.MAC   `json:"mac"`
}

// Change is one step of a diff. Text is a command in iproute2 syntax.
type Change struct {
	Op   string `json:"op"` // add, replace, modify or delete
	Text string `json:"text"`
}

// Plan is the document at PlanPath: what the agent would do now.
type Plan struct {
	Changes  []Change         `json:"changes"`
	Problems []subnet.Problem `json:"problems"`
}

// Get fetches the document at path from the agent behind socket into out.
// Its errors say what to look at when the agent cannot be reached.
func Get(ctx context.Context, socket, path string, out any) error {
	return ask(ctx, http.MethodGet, socket, path, out)
}

// Post asks the agent behind socket to do what path names, and reads its
// answer into out. Its errors are those of Get.
func Post(ctx context.Context, socket, path string, out any) error {
	return ask(ctx, http.MethodPost, socket, path, out)
}

func ask(ctx context.Context, method, socket, path string, out any) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, method, "http://weftd"+path, nil)
	if err != nil {
		return err
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return explain(socket, err)
	}
	defer resp.Body.Close() // read to the end below
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument))
	if err != nil {
		return fmt.Errorf("read %s from %s: %w", path, socket, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("agent at %s answered %s to %s: %s", socket, resp.Status, path, strings.TrimSpace(string(body)))
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("decode %s from %s: %w", path, socket, err)
	}
	return nil
}

func explain(socket string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("no agent: %s does not exist (is weftd running on this node? --socket names another place)", socket)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("no access to %s: %w (the socket is open to root and its group)", socket, err)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer from the agent at %s in time (is weftd stopped, or stuck?)", socket)
	}
	return fmt.Errorf("no answer from the agent at %s: %w", socket, err)
}
