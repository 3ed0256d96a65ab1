// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"weft.dev/weft/cmd/internal/api"
	"weft.dev/weft/subnet"
)

// answerTimeout is more than a plan for the largest network takes.
const answerTimeout = 30 * time.Second

func (c *cli) status(cmd *cobra.Command, _ []string) error {
	var s api.Status
	if err := ask(cmd, api.Get, c.socket, api.StatusPath, &s); err != nil {
		return err
	}
	if !s.Ready {
		c.code = 1
	}
	if c.output == "json" {
		return writeJSON(cmd.OutOrStdout(), s)
	}
	return printStatus(cmd.OutOrStdout(), s, time.Now())
}

func (c *cli) plan(cmd *cobra.Command, _ []string) error {
	var p api.Plan
	if err := ask(cmd, api.Get, c.socket, api.PlanPath, &p); err != nil {
		return err
	}
	if c.output == "json" {
		return writeJSON(cmd.OutOrStdout(), p)
	}
	return printPlan(cmd.OutOrStdout(), p)
}

// ask is api.Get or api.Post with an end: an agent that is stopped or stuck
// still has its socket, on which the kernel accepts connections.
func ask(cmd *cobra.Command, how func(context.Context, string, string, any) error, socket, path string, out any) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), answerTimeout)
	defer cancel()
	return how(ctx, socket, path, out)
}

func writeJSON(w io.Writer, doc any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(doc)
}

// printStatus renders a status for people. Names in it come from the store,
// where other nodes write: control characters are made visible.
func printStatus(out io.Writer, s api.Status, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(cells ...string) {
		for i := range cells {
			cells[i] = visible(cells[i])
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	state := "ready"
	if !s.Ready {
		state = "NOT READY: " + s.Reason
	}
	row("Node:", s.Node)
	row("State:", state)
	row("Store:", s.Store+age(s.Snapshot, now))
	if s.Networks != "" {
		row("Networks:", s.Networks)
	}
	row("Lease:", prefixes(s.Subnets))
	row("Kernel:", kernelLine(s))
	row("Guard:", guardLine(s.Guard))
	if s.Policy != nil {
		row("Policy:", policyLine(*s.Policy))
	}
	if s.Hold != nil {
		row("Hold:", holdLine(*s.Hold, now))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(s.Devices) > 0 {
		fmt.Fprintln(w)
		row("DEVICE", "VNI", "PORT", "MTU", "MAC", "LOCAL", "UNDERLAY")
		for _, d := range s.Devices {
			row(d.Name, fmt.Sprint(d.VNI), fmt.Sprint(d.Port), fmt.Sprint(d.MTU), d.MAC.String(), d.Local.String(), d.Underlay)
		}
	}
	if len(s.Peers) > 0 {
		fmt.Fprintln(w)
		row("PEER", "SUBNET", "UNDERLAY", "MAC")
		for _, p := range s.Peers {
			name := p.Node
			if name == "" {
				name = "(flannel)"
			}
			for _, path := range p.Paths {
				row(name, path.Subnet.String(), path.Underlay.String(), path.MAC.String())
				name = ""
			}
		}
	}
	for i, ch := range s.Pending {
		if i == 0 {
			fmt.Fprintln(w, "\nNot applied:")
		}
		row("  " + ch.Text)
	}
	printProblems(w, s.Problems)
	return w.Flush()
}

func kernelLine(s api.Status) string {
	switch {
	case s.InSync && s.Reached < len(s.Peers):
		return fmt.Sprintf("in sync, %d of %d peers; see the problems below", s.Reached, len(s.Peers))
	case s.InSync:
		return fmt.Sprintf("in sync, %d peers", len(s.Peers))
	case s.LastPass == nil:
		return "not touched yet"
	case len(s.Pending) == 0:
		return "OUT OF SYNC, its state could not be read"
	}
	return fmt.Sprintf("OUT OF SYNC, %d changes not applied", len(s.Pending))
}

// guardLine says what the guard lets in, and how many packets it has refused.
// An agent of the version before has no guard.
func guardLine(g api.Guard) string {
	if g.Mode == "" {
		return "unknown"
	}
	line := g.Mode
	if g.Masquerade {
		line += ", masquerading"
	}
	refused := listed("; refused: ", g.Refused)
	if refused == "" && g.Refused != nil {
		refused = "; nothing refused"
	}
	return line + refused
}

// policyLine says how far NetworkPolicies are in force, and what they denied.
func policyLine(p api.Policy) string {
	line := "in force"
	if !p.InForce {
		line = "NOT UP TO DATE: " + p.Reason
	}
	line += fmt.Sprintf("; %d policies, %d pod addresses, %d isolated for ingress, %d for egress", p.Policies, p.Pods, p.Isolated["ingress"], p.Isolated["egress"])
	line += fmt.Sprintf("; %d links guarded", p.Guarded)
	line += listed("; denied: ", p.Denied) + listed("; spoofed: ", p.Spoofed)
	return line
}

// listed lists what is not zero after a head, "" if nothing is.
func listed(head string, counts map[string]uint64) string {
	var out []string
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		if n := counts[reason]; n > 0 {
			out = append(out, fmt.Sprintf("%d %s", n, reason))
		}
	}
	if len(out) == 0 {
		return ""
	}
	return head + strings.Join(out, ", ")
}

func holdLine(h api.Hold, now time.Time) string {
	return fmt.Sprintf("the store has lost most peers; %d routes are kept for another %s; `weft peers release` removes them now",
		h.Routes, max(0, h.Until.Sub(now)).Round(time.Second))
}

func age(t *time.Time, now time.Time) string {
	if t == nil {
		return " (no answer yet)"
	}
	return fmt.Sprintf(" (last change %s ago)", now.Sub(*t).Round(time.Second))
}

func prefixes(list []netip.Prefix) string {
	if len(list) == 0 {
		return "none"
	}
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}

func printPlan(w io.Writer, p api.Plan) error {
	if len(p.Changes) == 0 {
		fmt.Fprintln(w, "nothing to do: the kernel holds what it should")
	}
	for _, ch := range p.Changes {
		fmt.Fprintln(w, visible(ch.Text))
	}
	printProblems(w, p.Problems)
	return nil
}

func printProblems(w io.Writer, problems []subnet.Problem) {
	for i, p := range problems {
		if i == 0 {
			fmt.Fprintln(w, "\nProblems:")
		}
		fmt.Fprintln(w, "  "+visible(p.String()))
	}
}

// visible replaces control characters, which could move the cursor of a terminal
// or break a table, by U+FFFD.
func visible(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			return '\uFFFD'
		}
		return r
	}, s)
}
