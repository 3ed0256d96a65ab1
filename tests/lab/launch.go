// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"weft.dev/weft/tests/netlab"
)

// passwordEnv holds etcd's password: a command line is for everyone to read.
const passwordEnv = "WEFT_LAB_ETCD_PASSWORD"

// optionsEnv carries the options from the launcher to the control process.
const optionsEnv = "WEFT_LAB_OPTIONS"

// options is what the launcher hands to the control process, as JSON.
type options struct {
	Mode         string // "run" or "up"
	Nodes        int
	PodsPerNode  int
	Etcd         netlab.Outside
	Output       string // "table" or "json"
	Keep         bool
	IperfSeconds int
	Rounds       int
	Underlay     string
	MTU          int
	BinDir       string
	Network      string
	Agent        []string
}

// launcher is the command line outside of a lab.
type launcher struct {
	options
	id             string
	urls           []string // --etcd
	stdout, stderr io.Writer
	code           int
	started        bool // past usage errors
}

// Exit statuses.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130 // 128 + SIGINT, as shells report it
)

func launch(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	l := &launcher{stdout: stdout, stderr: stderr}
	root := l.command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return l.code
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "weft-lab: interrupted; nothing of the lab is left")
		return exitInterrupted
	case l.started:
		fmt.Fprintf(stderr, "weft-lab: %v\n", err)
		return exitFailed
	}
	fmt.Fprintf(stderr, "weft-lab: %v\n`weft-lab --help` shows what there is\n", err)
	return exitUsage
}

func (l *launcher) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "weft-lab",
		Short: "A weft network in namespaces on this machine: nodes, etcd, agents, pods",
		Long: "Builds a fabric without a way out, an etcd, and nodes with a real weftd each;\n" +
			"attaches pods through the real CNI chain; checks that all pods reach each other in\n" +
			"both families; and compares pod-to-pod with host-to-host throughput. The exit\n" +
			"status is 0 only if all of it worked. Nothing stays behind, however it ends.",
		Example: "  weft-lab                              three nodes, two pods each, all checks\n" +
			"  weft-lab run -o json                  the same, as one JSON document\n" +
			"  weft-lab run --etcd http://10.0.0.9:2379\n" +
			"  weft-lab up                           leave a lab standing\n" +
			"  weft-lab exec n1 -- weft status       look around on a node of it\n" +
			"  weft-lab exec n1-p1 -- ping 10.42.7.2 or in a pod\n" +
			"  weft-lab down",
		Args: cobra.NoArgs, RunE: l.run, PersistentPreRunE: l.check,
		SilenceErrors: true, SilenceUsage: true,
	}
	run := &cobra.Command{Use: "run", Short: "Build a lab, check and measure it (default)", Args: cobra.NoArgs, RunE: l.run}
	up := &cobra.Command{Use: "up", Short: "Build a lab and leave it standing", Args: cobra.NoArgs, RunE: l.up}
	down := &cobra.Command{Use: "down [ID]", Short: "End a lab that was left standing", Args: cobra.MaximumNArgs(1), RunE: l.down}
	list := &cobra.Command{Use: "list", Short: "List the labs that stand", Args: cobra.NoArgs, RunE: l.list}
	exec := &cobra.Command{Use: "exec NODE|POD -- COMMAND...", Short: "Run a command on a node or in a pod",
		Args: cobra.MinimumNArgs(2), RunE: l.exec}
	exec.Flags().StringVar(&l.id, "lab", "", "ID of the lab; needed only if several stand")
	exec.Flags().SetInterspersed(false)
	for _, f := range []*pflag.FlagSet{root.Flags(), run.Flags()} {
		l.networkFlags(f)
		f.StringVarP(&l.Output, "output", "o", "table", "table or json")
		f.BoolVar(&l.Keep, "keep", false, "leave the lab standing after the checks")
		f.IntVar(&l.IperfSeconds, "iperf-seconds", 1, "length of one iperf3 measurement, seconds; 0 measures nothing")
		f.IntVar(&l.Rounds, "iperf-rounds", 5, "measurements of each kind, interleaved")
	}
	l.networkFlags(up.Flags())
	root.AddCommand(run, up, down, list, exec)
	root.CompletionOptions.DisableDefaultCmd = true
	return root
}

// networkFlags define what lab to build.
func (l *launcher) networkFlags(f *pflag.FlagSet) {
	f.SortFlags = false
	f.IntVar(&l.Nodes, "nodes", 3, "number of nodes, 1 to 200")
	f.IntVar(&l.PodsPerNode, "pods-per-node", 2, "pods attached on each node, 0 to 100")
	f.StringSliceVar(&l.urls, "etcd", nil, "URLs of an etcd to use instead of one inside the lab; the lab's keys are removed after it")
	f.StringVar(&l.Etcd.CAFile, "etcd-cafile", "", "CA certificate (PEM) that signs that etcd's certificates")
	f.StringVar(&l.Etcd.CertFile, "etcd-certfile", "", "client certificate (PEM)")
	f.StringVar(&l.Etcd.KeyFile, "etcd-keyfile", "", "key of the client certificate (PEM)")
	f.StringVar(&l.Etcd.Username, "etcd-username", "", "etcd user; the password is taken from "+passwordEnv)
	f.StringVar(&l.Underlay, "underlay", "dual", "families of the nodes' own addresses: dual, ipv4 or ipv6")
	f.IntVar(&l.MTU, "mtu", 1500, "MTU of the nodes' links, bytes, 1280 to 65535")
	f.StringVar(&l.Network, "network", netlab.DefaultNetwork, "network configuration, net-conf.json")
	f.StringVar(&l.BinDir, "bin-dir", "", "directory with weftd, weft and cni/ (default: that of weft-lab)")
	f.StringArrayVar(&l.Agent, "agent-arg", nil, "further argument for every weftd, e.g. --agent-arg=--log-level=debug; repeatable")
	f.StringVar(&l.id, "name", "", "ID of the lab (default: a random one)")
}

// check refuses what cannot work before anything is built.
func (l *launcher) check(cmd *cobra.Command, _ []string) error {
	building := cmd.Flags().Lookup("nodes") != nil
	if building {
		if err := l.checkOptions(); err != nil {
			return err
		}
	}
	l.started = true
	if err := netlab.Preflight(); err != nil {
		return err
	}
	if !building {
		return nil
	}
	tools := []string{"ip", "bridge", "ping"}
	if l.IperfSeconds > 0 {
		tools = append(tools, "iperf3")
	}
	if err := netlab.Preflight(tools...); err != nil {
		return err
	}
	var err error
	if l.BinDir, err = netlab.FindBin(l.BinDir); err != nil {
		return err
	}
	for _, f := range []*string{&l.Etcd.CAFile, &l.Etcd.CertFile, &l.Etcd.KeyFile} {
		if *f != "" { // nodes run elsewhere
			if *f, err = filepath.Abs(*f); err != nil {
				return err
			}
		}
	}
	l.Etcd.Password = os.Getenv(passwordEnv)
	l.Etcd.Endpoints, err = netlab.ResolveEndpoints(cmd.Context(), l.urls)
	return err
}

func (l *launcher) checkOptions() error {
	for _, r := range []struct {
		flag         string
		val, min, to int
	}{
		{"nodes", l.Nodes, 1, 200}, {"pods-per-node", l.PodsPerNode, 0, 100}, {"mtu", l.MTU, 1280, 65535},
		{"iperf-seconds", l.IperfSeconds, 0, 3600}, {"iperf-rounds", l.Rounds, 0, 1000},
	} {
		if r.val < r.min || r.val > r.to {
			return fmt.Errorf("--%s %d: want %d to %d", r.flag, r.val, r.min, r.to)
		}
	}
	if l.Output != "table" && l.Output != "json" && l.Output != "" {
		return fmt.Errorf("--output %q: want table or json", l.Output)
	}
	if strings.ContainsAny(l.id, "/ ") {
		return fmt.Errorf("--name %q: want a name without slash or space", l.id)
	}
	_, err := netlab.ParseUnderlay(l.Underlay)
	return err
}

func (l *launcher) run(cmd *cobra.Command, _ []string) error {
	l.Mode = "run"
	return l.start(cmd.Context(), l.Keep)
}

func (l *launcher) up(cmd *cobra.Command, _ []string) error {
	l.Mode = "up"
	return l.start(cmd.Context(), true)
}

// start launches the lab's control process with the options.
func (l *launcher) start(ctx context.Context, stay bool) error {
	b, err := json.Marshal(l.options)
	if err != nil {
		return err
	}
	if l.id == "" {
		l.id = netlab.NewID()
	}
	la := netlab.Launch{ID: l.id, Env: []string{optionsEnv + "=" + string(b)}, Stdout: l.stdout, Stderr: l.stderr}
	stands := false
	if stay {
		la.Standing = func(r netlab.Record) error {
			err := l.standing(r)
			stands = err == nil
			return err
		}
	}
	l.code, err = la.Run(ctx)
	if stands {
		return err
	}
	// Not the lab's own work: it may have been ended at any moment.
	if e := l.Etcd.Clean(context.WithoutCancel(ctx), l.id); e != nil {
		fmt.Fprintf(l.stderr, "weft-lab: keys of lab %s may be left in etcd: %v\n", l.id, e)
		l.code = max(l.code, exitFailed)
	}
	return err
}

// standing records the lab and says how to use it.
func (l *launcher) standing(r netlab.Record) error {
	r.Etcd = l.Etcd
	if err := r.Save(); err != nil {
		return err
	}
	fmt.Fprintf(l.stderr, "lab %s stands; nodes %s; pods %s\n", r.ID, strings.Join(r.Nodes, " "), strings.Join(r.Pods, " "))
	fmt.Fprintf(l.stderr, "  weft-lab exec %s -- weft status\n  weft-lab exec %s -- bash\n  weft-lab down %s\n", r.Nodes[0], r.Nodes[0], r.ID)
	return nil
}

// the returns the lab of that ID, or the only one if id is empty.
func the(id string) (netlab.Record, error) {
	if id != "" {
		return netlab.LoadRecord(id)
	}
	all, err := netlab.Records()
	if err != nil {
		return netlab.Record{}, err
	}
	switch len(all) {
	case 0:
		return netlab.Record{}, errors.New("no lab stands; `weft-lab up` makes one")
	case 1:
		return all[0], nil
	}
	var ids []string
	for _, r := range all {
		ids = append(ids, r.ID)
	}
	return netlab.Record{}, fmt.Errorf("several labs stand, name one of %s", strings.Join(ids, ", "))
}

func (l *launcher) down(cmd *cobra.Command, args []string) error {
	id := ""
	if len(args) == 1 {
		id = args[0]
	}
	r, err := the(id)
	if err != nil {
		return err
	}
	if err := r.Down(); err != nil {
		return err
	}
	r.Etcd.Password = os.Getenv(passwordEnv)
	if err := r.Etcd.Clean(cmd.Context(), r.ID); err != nil {
		return err
	}
	fmt.Fprintf(l.stderr, "lab %s is gone\n", r.ID)
	return nil
}

func (l *launcher) list(*cobra.Command, []string) error {
	all, err := netlab.Records()
	if err != nil {
		return err
	}
	for _, r := range all {
		fmt.Fprintf(l.stdout, "%s\tprocess %d\tsince %s\t%d nodes\t%d pods\n",
			r.ID, r.PID, r.Created.Local().Format(time.DateTime), len(r.Nodes), len(r.Pods))
	}
	return nil
}

func (l *launcher) exec(_ *cobra.Command, args []string) error {
	r, err := the(l.id)
	if err != nil {
		return err
	}
	command := args[1:]
	if command[0] == "--" && len(command) > 1 {
		command = command[1:]
	}
	l.code, err = r.Exec(args[0], command)
	return err
}
