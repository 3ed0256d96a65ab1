// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"time"

	"weft.dev/weft/tests/netlab"
)

// A NodeState is what the API says of a node.
type NodeState struct {
	Name     string
	UID      string
	PodCIDRs []string
	Ready    bool
	Reason   string // of the condition Ready, with its message
	Taints   []string
}

// nodeObject is what we read of a Node.
type nodeObject struct {
	Metadata struct{ Name, UID string }
	Spec     struct {
		PodCIDRs []string
		Taints   []struct{ Key, Effect string }
	}
	Status struct {
		Conditions []struct{ Type, Status, Reason, Message string }
	}
}

func (o nodeObject) state() NodeState {
	s := NodeState{Name: o.Metadata.Name, UID: o.Metadata.UID, PodCIDRs: o.Spec.PodCIDRs}
	for _, t := range o.Spec.Taints {
		s.Taints = append(s.Taints, t.Key+":"+t.Effect)
	}
	for _, c := range o.Status.Conditions {
		if c.Type == "Ready" {
			s.Ready, s.Reason = c.Status == "True", c.Reason+": "+c.Message
		}
	}
	return s
}

// Get asks the API server, as the administrator, and returns its answer. A
// status other than 200 is an error.
func (c *Cluster) Get(ctx context.Context, path string) ([]byte, error) {
	return c.call(ctx, http.MethodGet, path, "")
}

// Patch changes an object by a JSON patch (RFC 6902).
func (c *Cluster) Patch(ctx context.Context, path, patch string) error {
	_, err := c.call(ctx, http.MethodPatch, path, patch)
	return err
}

func (c *Cluster) call(ctx context.Context, method, path, patch string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.cfg.endpoint()+path, strings.NewReader(patch))
	if err != nil {
		return nil, err
	}
	if patch != "" {
		req.Header.Set("Content-Type", "application/json-patch+json")
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the API server: %w", err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("ask the API server for %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the API server for %s: %s: %.300s", path, resp.Status, b)
	}
	return b, nil
}

// GetJSON decodes what Get returns.
func (c *Cluster) GetJSON(ctx context.Context, path string, into any) error {
	b, err := c.Get(ctx, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("the API server's answer for %s: %w", path, err)
	}
	return nil
}

// Node returns what the API says of a node.
func (c *Cluster) Node(ctx context.Context, name string) (NodeState, error) {
	var o nodeObject
	err := c.GetJSON(ctx, "/api/v1/nodes/"+name, &o)
	return o.state(), err
}

// NodeStates returns what the API says of all nodes.
func (c *Cluster) NodeStates(ctx context.Context) ([]NodeState, error) {
	var list struct{ Items []nodeObject }
	if err := c.GetJSON(ctx, "/api/v1/nodes", &list); err != nil {
		return nil, err
	}
	var out []NodeState
	for _, o := range list.Items {
		out = append(out, o.state())
	}
	return out, nil
}

// WaitReady waits until all nodes are Ready and may be used, and names those
// that are not.
func (c *Cluster) WaitReady(ctx context.Context, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for {
		states, err := c.NodeStates(ctx)
		if err == nil {
			err = allReady(states, len(c.nodes))
		}
		if err == nil {
			return nil
		}
		if netlab.Pause(ctx, 200*time.Millisecond) != nil {
			return fmt.Errorf("nodes after %s: %w", within, err)
		}
	}
}

// allReady names the nodes that are not.
func allReady(states []NodeState, want int) error {
	var errs []error
	if len(states) != want {
		errs = append(errs, fmt.Errorf("%d nodes are registered, want %d", len(states), want))
	}
	for _, s := range states {
		if !s.Ready {
			errs = append(errs, fmt.Errorf("%s is not Ready: %s", s.Name, s.Reason))
		}
		for _, t := range s.Taints { // the controllers take them away a moment later
			if strings.HasPrefix(t, "node.kubernetes.io/") {
				errs = append(errs, fmt.Errorf("%s is tainted %s", s.Name, t))
			}
		}
	}
	return errors.Join(errs...)
}

// Command returns a command that runs in the fabric as the administrator, for
// its RunCmd or Start. A program of the parts is found by its name.
func (c *Cluster) Command(ctx context.Context, program string, args ...string) *exec.Cmd {
	if path, ok := c.cfg.Parts.Programs[program]; ok {
		program = path
	}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(cmd.Environ(), c.env()...)
	return cmd
}

// Kubectl runs kubectl as the administrator and returns what it prints.
func (c *Cluster) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.fabric.RunCmd(ctx, c.Command(ctx, "kubectl", args...))
}

// Apply applies manifests: files, or text that is not a file's name.
func (c *Cluster) Apply(ctx context.Context, manifest string) error {
	cmd := c.Command(ctx, "kubectl", "apply", "-f", manifest)
	if strings.Contains(manifest, "\n") {
		cmd = c.Command(ctx, "kubectl", "apply", "-f", "-")
		cmd.Stdin = strings.NewReader(manifest)
	}
	_, err := c.fabric.RunCmd(ctx, cmd)
	return err
}
