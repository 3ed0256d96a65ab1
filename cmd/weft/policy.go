// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"weft.dev/weft/cmd/internal/api"
)

// policy is the commands about NetworkPolicies.
func (c *cli) policy() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "NetworkPolicies on this node: what there is, and why a packet passes or does not",
		Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(
		&cobra.Command{Use: "list", Args: cobra.NoArgs, RunE: c.policyList,
			Short: "The cluster's policies, and the pods of this node that each selects"},
		&cobra.Command{Use: "explain SRC DST:PORT[/PROTO]", Args: cobra.ExactArgs(2), RunE: c.policyExplain,
			Short: "May it pass, by which policy and rule, or what would allow it",
			Long: "Says whether the policies let a packet pass, by which rule, or what comes close and\nwhat would let it. SRC and DST are addresses, or pods as NAMESPACE/NAME; DST is\n" +
				"followed by a port, and by a protocol that is not TCP. An IPv6 address with a port is\nin brackets. The exit status is 1 when the packet may not pass.",
			Example: "  weft policy explain shop/web 10.42.3.7:5432\n  weft policy explain 192.0.2.1 [fd42::7]:53/udp\n  weft policy explain shop/web shop/db:0/icmp"},
		&cobra.Command{Use: "dump", Args: cobra.NoArgs, RunE: c.policyDump,
			Short: "The table that is in force, as commands of the nft program"},
	)
	return cmd
}

func (c *cli) policyList(cmd *cobra.Command, _ []string) error {
	var doc api.Policies
	if err := ask(cmd, api.Get, c.socket, api.PolicyPath, &doc); err != nil {
		return err
	}
	if c.output == "json" {
		return writeJSON(cmd.OutOrStdout(), doc)
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAMESPACE\tNAME\tISOLATES\tPODS HERE")
	for _, p := range doc.Policies {
		pods := strings.Join(p.Pods, ", ")
		if pods == "" {
			pods = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", visible(p.Namespace), visible(p.Name), strings.Join(p.Isolates, ", "), visible(pods))
	}
	return w.Flush()
}

func (c *cli) policyExplain(cmd *cobra.Command, args []string) error {
	dst, port, proto, err := destination(args[1])
	if err != nil {
		return err
	}
	query := url.Values{"src": {args[0]}, "dst": {dst}, "port": {port}, "proto": {proto}}
	var doc api.Explanation
	if err := ask(cmd, api.Get, c.socket, api.ExplainPath+"?"+query.Encode(), &doc); err != nil {
		return err
	}
	if !doc.Allowed {
		c.code = 1
	}
	if c.output == "json" {
		return writeJSON(cmd.OutOrStdout(), doc)
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%skernel of this node: %s\n", doc.Text, visible(doc.Kernel))
	return err
}

// destination takes DST:PORT[/PROTO] apart. A pod's name has one slash, which
// comes before the colon.
func destination(s string) (dst, port, proto string, err error) {
	want := fmt.Errorf("destination %q: want ADDRESS:PORT, [ADDRESS]:PORT or NAMESPACE/NAME:PORT, and after it /udp, /sctp, /icmp or a number for what is not TCP", s)
	i := strings.LastIndex(s, ":")
	if i < 0 {
		return "", "", "", want
	}
	dst, port = s[:i], s[i+1:]
	proto = "tcp"
	if p, rest, found := strings.Cut(port, "/"); found {
		port, proto = p, rest
	}
	if inside, ok := strings.CutPrefix(dst, "["); ok {
		dst = strings.TrimSuffix(inside, "]")
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil || dst == "" || proto == "" {
		return "", "", "", want
	}
	if _, err := netip.ParseAddr(dst); err != nil && strings.Count(dst, "/") != 1 {
		return "", "", "", want
	}
	return dst, port, proto, nil
}

func (c *cli) policyDump(cmd *cobra.Command, _ []string) error {
	var doc api.Rules
	if err := ask(cmd, api.Get, c.socket, api.RulesPath, &doc); err != nil {
		return err
	}
	if c.output == "json" {
		return writeJSON(cmd.OutOrStdout(), doc)
	}
	_, err := fmt.Fprint(cmd.OutOrStdout(), doc.NFT)
	return err
}
