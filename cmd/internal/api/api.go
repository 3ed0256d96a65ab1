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
	"time"

	"weft.dev/weft/subnet"
)

// DefaultSocket is where the agent listens unless --socket says otherwise.
const DefaultSocket = "/run/weft/weftd.sock"

// The paths of the documents below the socket.
const (
	StatusPath = "/v1/status"
	PlanPath   = "/v1/plan"
)

// maxDocument bounds what the client reads: 20,000 peers at 400 bytes each.
const maxDocument = 64 << 20

// Status is the document at StatusPath.
type Status struct {
	Ready    bool             `json:"ready"`            // a pod started now would have its network
	Reason   string           `json:"reason,omitempty"` // why not ready, one sentence
	Node     string           `json:"node"`
	Version  string           `json:"version"`
	Store    string           `json:"store"` // e.g. "etcd http://10.0.0.1:2379 /weft/network"
	Subnets  []netip.Prefix   `json:"subnets"`
	Devices  []Device         `json:"devices"`
	Peers    []Peer           `json:"peers"`
	Reached  int              `json:"reached"` // how many of Peers the kernel should know; the rest have Problems
	InSync   bool             `json:"inSync"`
	Pending  []Change         `json:"pending"`
	Problems []subnet.Problem `json:"problems"`
	LastPass *time.Time       `json:"lastPass,omitempty"`
	Snapshot *time.Time       `json:"snapshot,omitempty"` // when the store last delivered
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
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://weftd"+path, nil)
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
		return fmt.Errorf("agent at %s answered %s to %s: %s", socket, resp.Status, path, body)
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
