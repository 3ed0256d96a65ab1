// SPDX-License-Identifier: Apache-2.0

package netlab

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// LogPath returns the log file of a node's weftd, or of "etcd".
func (l *Lab) LogPath(name string) string {
	return filepath.Join(stateDir, "log", name+".log")
}

// tail returns the last lines of a log file, indented.
func (l *Lab) tail(name string, lines int) string {
	b, err := os.ReadFile(l.LogPath(name))
	if err != nil {
		return "    (no log: " + err.Error() + ")"
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return "    " + strings.Join(all, "\n    ")
}

// nodeDump is what an engineer would look at first on a node.
func nodeDump() [][]string {
	return [][]string{
		{"ip", "-br", "addr"},
		{"ip", "-d", "link", "show", "type", "vxlan"},
		{"ip", "-4", "route"},
		{"ip", "-6", "route"},
		{"ip", "neigh"},
		{"bridge", "fdb"},
	}
}

// Dump writes the state of all nodes and pods and the ends of all logs, for
// a failed run.
func (l *Lab) Dump(ctx context.Context, w io.Writer) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	fmt.Fprintf(w, "--- etcd log\n%s\n", l.tail("etcd", 20))
	if leases, err := l.Leases(ctx); err != nil {
		fmt.Fprintf(w, "--- leases: %v\n", err)
	} else {
		fmt.Fprintln(w, "--- leases")
		for k, v := range leases {
			fmt.Fprintf(w, "    %s %s\n", k, v)
		}
	}
	for _, n := range l.Nodes() {
		fmt.Fprintf(w, "--- %s: weftd log\n%s\n", n.name, l.tail(n.name, 40))
		for _, cmd := range nodeDump() {
			dumpOne(ctx, w, n.Place, cmd)
		}
	}
	for _, p := range l.Pods() {
		dumpOne(ctx, w, p.Place, []string{"ip", "-br", "addr"})
	}
}

func dumpOne(ctx context.Context, w io.Writer, p *Place, cmd []string) {
	out, err := p.Run(ctx, cmd...)
	if err != nil {
		out = err.Error()
	}
	fmt.Fprintf(w, "--- %s: %s\n", p.name, strings.Join(cmd, " "))
	for line := range strings.Lines(out) {
		// Groups that every device listens to (RFC 2464 section 7, RFC 1112
		// section 6.4) are most of `bridge fdb` and tell nothing.
		if !strings.HasPrefix(line, "33:33:") && !strings.HasPrefix(line, "01:00:5e:") {
			fmt.Fprintf(w, "    %s\n", strings.TrimRight(line, "\n"))
		}
	}
}
