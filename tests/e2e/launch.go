// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/e2e/parts"
)

// optionsEnv carries the options from the launcher to the control process.
const optionsEnv = "WEFT_E2E_OPTIONS"

// options is what the launcher hands to the control process, as JSON.
type options struct {
	Cluster  cluster.Config
	Up       bool   // leave it standing, test nothing
	Network  string // weft, static or none
	Manifest string // what weft's network comes from
	// Documented says that Manifest is the one that the documents apply.
	Documented bool
	Plugins    string // directory of the reference CNI plugins
	Focus      []string
	Listed     []string // names of all specs that are to run, if that is known
	Skip       string
	Suite      bool          // run Kubernetes' suite
	Cases      string        // which of our own, a regular expression; empty: all
	Long       bool          // also those that take minutes
	Helm       bool          // also those that use Helm
	Outage     time.Duration // how long the API server is away in one of them
	DNS        bool
	Keep       bool          // leave it standing after the tests
	Limit      time.Duration // of the control process
}

// launcher is the command line outside of a cluster.
type launcher struct {
	options
	cache, image   string
	specs          string // file of Listed, or ""
	id             string
	noSuite        bool
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

// standingID names the cluster that `up` leaves.
const standingID = "e2e"

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
		fmt.Fprintln(stderr, "weft-e2e: interrupted; nothing of the cluster is left")
		return exitInterrupted
	case l.started:
		fmt.Fprintf(stderr, "weft-e2e: %v\n", err)
		return exitFailed
	}
	fmt.Fprintf(stderr, "weft-e2e: %v\n`weft-e2e --help` shows what there is\n", err)
	return exitUsage
}

func (l *launcher) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "weft-e2e",
		Short: "A real Kubernetes in namespaces on this machine, with weft as its network",
		Long: "Builds Kubernetes' parts from their Go modules, into a cache; brings a cluster up\n" +
			"whose nodes are NotReady; applies weft's manifest; and runs our own cases and the\n" +
			"network's specs of Kubernetes' e2e suite. Nothing stays behind, however it ends, but\n" +
			"the cache and the logs.",
		Example: "  weft-e2e run                           all of it, on three dual-stack nodes\n" +
			"  weft-e2e up                            leave a cluster standing\n" +
			"  weft-e2e kubectl get nodes             ask it\n" +
			"  weft-e2e exec n1 -- weft status        look around on a node of it\n" +
			"  weft-e2e down",
		Args: cobra.NoArgs, SilenceErrors: true, SilenceUsage: true,
		PersistentPreRun: func(*cobra.Command, []string) { l.started = true },
	}
	root.PersistentFlags().StringVar(&l.cache, "cache", "", "where built parts are kept (default $"+parts.CacheEnv+", or weft-e2e in the user's cache directory)")
	run := &cobra.Command{Use: "run", Short: "Bring a cluster up, test it, end it", Args: cobra.NoArgs, RunE: l.run}
	up := &cobra.Command{Use: "up", Short: "Bring a cluster up and leave it standing", Args: cobra.NoArgs, RunE: l.up}
	down := &cobra.Command{Use: "down [ID]", Short: "End a cluster that stands", Args: cobra.MaximumNArgs(1), RunE: l.down}
	build := &cobra.Command{Use: "parts [PROGRAM...]", Short: "Build what is missing in the cache, or these programs alone, and print where it is", RunE: l.parts}
	exec := &cobra.Command{Use: "exec NODE|fabric -- COMMAND...", Short: "Run a command on a node, or on the host beside them",
		Args: cobra.MinimumNArgs(2), RunE: l.exec}
	exec.Flags().SetInterspersed(false)
	kubectl := &cobra.Command{Use: "kubectl ARGS...", Short: "Run kubectl as the cluster's administrator", DisableFlagParsing: true, RunE: l.kubectl}
	for _, f := range []*pflag.FlagSet{run.Flags(), up.Flags()} {
		l.clusterFlags(f)
	}
	run.Flags().StringVar(&l.specs, "specs", "", "file with the names of the specs that are to run, one a line: one that does not, or another that does, is a failure")
	run.Flags().StringSliceVar(&l.Focus, "focus", nil, "specs of the suite, as regular expressions, in place of the usual ones")
	run.Flags().BoolVar(&l.Suite, "suite", true, "run Kubernetes' e2e suite")
	run.Flags().StringVar(&l.Cases, "cases", "", "which of our own tests, as a regular expression over their names (default all)")
	run.Flags().BoolVar(&l.Long, "long", false, "also our own tests that take minutes each")
	for _, f := range []*pflag.FlagSet{run.Flags(), up.Flags(), build.Flags()} {
		f.BoolVar(&l.Helm, "helm", false, "build Helm as well; run tests the chart with it")
	}
	run.Flags().DurationVar(&l.Outage, "outage", 2*time.Minute, "how long the API server is away in one of them")
	run.Flags().StringVar(&l.Skip, "skip", defaultSkip, "specs to leave out, as a regular expression")
	up.Flags().BoolVar(&l.noSuite, "without-suite", true, "do not build Kubernetes' e2e suite")
	build.Flags().BoolVar(&l.noSuite, "without-suite", false, "do not build Kubernetes' e2e suite")
	for _, f := range []*pflag.FlagSet{exec.Flags(), up.Flags()} {
		f.StringVar(&l.id, "name", "", "ID of the cluster (default "+standingID+")")
	}
	root.AddCommand(run, up, down, build, exec, kubectl)
	root.CompletionOptions.DisableDefaultCmd = true
	return root
}

// clusterFlags say what cluster to build.
func (l *launcher) clusterFlags(f *pflag.FlagSet) {
	c := &l.Cluster
	f.SortFlags = false
	f.IntVar(&c.Nodes, "nodes", 3, "number of nodes")
	f.StringVar(&c.Family, "family", "dual", "addresses of nodes, pods and services: dual, ipv4 or ipv6")
	f.StringVar(&c.Proxy, "proxy", "nftables", "kube-proxy's mode: nftables or iptables")
	f.StringVar(&l.Network, "network", "weft", "what gives pods their network: weft (the manifest), static (a bridge and routes by hand) or none")
	f.StringVar(&l.Manifest, "manifest", "dist/manifests/weft.yaml", "weft's manifest")
	f.StringVar(&l.image, "image", "bin/weft-image.tar", "weft's image, as an archive")
	f.StringVar(&l.Plugins, "plugins", "bin/cni", "reference CNI plugins, for --network static")
	f.BoolVar(&l.DNS, "dns", true, "install CoreDNS")
	f.StringVar(&c.LogDir, "log-dir", "bin/e2e-logs", "where logs go; it is emptied first")
	f.BoolVar(&l.Keep, "keep", false, "leave the cluster standing after the tests, or after a failure")
	f.DurationVar(&l.Limit, "limit", 40*time.Minute, "end the cluster after this time; standing ones do not count")
}

// open opens the cache.
func (l *launcher) open() (*parts.Cache, error) {
	root, err := parts.Root()
	if err != nil {
		return nil, err
	}
	return parts.Open(l.cache, root, l.stderr)
}

// build makes the parts.
func (l *launcher) build(ctx context.Context) (parts.Set, error) {
	cache, err := l.open()
	if err != nil {
		return parts.Set{}, err
	}
	var without []string
	if l.noSuite {
		without = append(without, parts.E2ETest)
	}
	if !l.Helm {
		without = append(without, parts.Helm)
	}
	return cache.Build(ctx, without...)
}

func (l *launcher) parts(cmd *cobra.Command, names []string) error {
	if len(names) > 0 {
		return l.programs(cmd.Context(), names)
	}
	set, err := l.build(cmd.Context())
	if err != nil {
		return err
	}
	for _, dir := range set.Dirs {
		fmt.Fprintln(l.stdout, dir)
	}
	for _, image := range set.Images {
		fmt.Fprintln(l.stdout, image)
	}
	return nil
}

// programs builds some programs alone and prints their paths.
func (l *launcher) programs(ctx context.Context, names []string) error {
	cache, err := l.open()
	if err != nil {
		return err
	}
	paths, err := cache.Programs(ctx, names...)
	for _, p := range paths {
		fmt.Fprintln(l.stdout, p)
	}
	return err
}

func (l *launcher) run(cmd *cobra.Command, _ []string) error {
	if _, err := regexp.Compile(l.Cases); err != nil {
		return fmt.Errorf("--cases %q: %w", l.Cases, err)
	}
	var err error
	if l.Listed, err = readSpecs(l.specs); err != nil {
		return err
	}
	l.noSuite = !l.Suite
	l.id = cluster.NewID()
	return l.start(cmd.Context(), l.Keep)
}

func (l *launcher) up(cmd *cobra.Command, _ []string) error {
	l.Up = true
	if l.id == "" {
		l.id = standingID
	}
	if !strings.HasPrefix(l.id, standingID) || strings.ContainsAny(l.id, "/. ") {
		return fmt.Errorf("--name %q: want a name that starts with %q, without slash, dot or space", l.id, standingID)
	}
	if r, err := cluster.Standing(l.id); err == nil && r.Alive() == nil {
		return fmt.Errorf("cluster %s stands already, since %s; `weft-e2e down %s` ends it", r.ID, r.Created.Local().Format(time.DateTime), r.ID)
	}
	return l.start(cmd.Context(), true)
}

// start builds the parts and launches the cluster's control process.
func (l *launcher) start(ctx context.Context, stay bool) error {
	if err := l.resolve(); err != nil {
		return err
	}
	var err error
	if l.Cluster.Parts, err = l.build(ctx); err != nil {
		return err
	}
	b, err := json.Marshal(l.options)
	if err != nil {
		return err
	}
	la := cluster.Launcher{ID: l.id, Env: []string{optionsEnv + "=" + string(b)}, Stdout: l.stdout, Stderr: l.stderr, Stay: stay}
	l.code, err = la.Run(ctx)
	if err == nil && stay {
		if r, err := cluster.Standing(l.id); err == nil && r.Alive() == nil {
			fmt.Fprintf(l.stderr, "cluster %s stands\n  bin/weft-e2e kubectl get nodes\n  bin/weft-e2e exec n1 -- bash\n  bin/weft-e2e down %s\n", l.id, l.id)
		}
	}
	return err
}

// resolve makes paths absolute, checks the options, and empties the directory
// of the logs.
func (l *launcher) resolve() error {
	if l.Network != "weft" && l.Network != "static" && l.Network != "none" {
		return fmt.Errorf("--network %q: want weft, static or none", l.Network)
	}
	for _, p := range []*string{&l.Manifest, &l.image, &l.Plugins, &l.Cluster.LogDir} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return err
		}
		*p = abs
	}
	root, err := parts.Root()
	if err != nil {
		return err
	}
	l.Documented = l.Manifest == filepath.Join(root, "dist/manifests/weft.yaml")
	if l.Network == "weft" {
		if err := l.findWeft(); err != nil {
			return err
		}
	}
	if err := l.Cluster.Check(); err != nil {
		return err
	}
	if err := os.RemoveAll(l.Cluster.LogDir); err != nil {
		return fmt.Errorf("empty --log-dir: %w", err)
	}
	if err := os.MkdirAll(l.Cluster.LogDir, 0o755); err != nil {
		return fmt.Errorf("make --log-dir: %w", err)
	}
	return nil
}

// findWeft looks for manifest and image. A cluster that is only to stand may
// do without, and says so: it is what a newcomer applies the manifest to.
func (l *launcher) findWeft() error {
	var missing []string
	for _, f := range []string{l.Manifest, l.image} {
		if _, err := os.Stat(f); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, f)
		} else if err != nil {
			return err
		}
	}
	switch {
	case len(missing) == 0:
		l.Cluster.Images = append(l.Cluster.Images, l.image)
		return nil
	case !l.Up:
		return fmt.Errorf("no %s: `make image manifests` makes them", strings.Join(missing, ", no "))
	}
	fmt.Fprintf(l.stderr, "no %s: nodes stay NotReady until something gives them a network\n", strings.Join(missing, ", no "))
	l.Network = "none"
	return nil
}

func (l *launcher) down(cmd *cobra.Command, args []string) error {
	id := ""
	if len(args) == 1 {
		id = args[0]
	}
	r, err := cluster.Standing(id)
	if err != nil {
		return err
	}
	if err := cluster.Down(cmd.Context(), r); err != nil {
		return err
	}
	fmt.Fprintf(l.stderr, "cluster %s is gone\n", r.ID)
	return nil
}

func (l *launcher) exec(_ *cobra.Command, args []string) error {
	return l.enter(l.id, args[0], args[1:])
}

func (l *launcher) kubectl(_ *cobra.Command, args []string) error {
	l.started = true
	return l.enter("", "fabric", append([]string{"kubectl", "--kubeconfig=" + cluster.AdminConfig}, args...))
}

// enter runs a command in a standing cluster.
func (l *launcher) enter(id, place string, command []string) error {
	r, err := cluster.Standing(id)
	if err != nil {
		return err
	}
	if command[0] == "--" && len(command) > 1 {
		command = command[1:]
	}
	if err := os.Setenv("HOME", "/run/home"); err != nil { // kubectl's cache is not the user's
		return err
	}
	l.code, err = r.Exec(place, command)
	return err
}
