// SPDX-License-Identifier: Apache-2.0

package measure

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"
)

// Machine says where figures were taken.
type Machine struct {
	Kernel string `json:"kernel"`
	Arch   string `json:"arch"`
	CPUs   int    `json:"cpus"`
}

// ThisMachine describes the one that we run on.
func ThisMachine() Machine {
	var u unix.Utsname
	_ = unix.Uname(&u) // fails only for a bad pointer
	return Machine{Kernel: unix.ByteSliceToString(u.Release[:]), Arch: runtime.GOARCH, CPUs: runtime.NumCPU()}
}

// A Report is all figures of one run.
type Report struct {
	Machine Machine `json:"machine"`
	Command string  `json:"command"`
	Version string  `json:"version"` // what weftd says of itself
	Rows    []Row   `json:"rows"`
}

// JSON writes the report as JSON.
func (r Report) JSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", " ")
	return e.Encode(r)
}

// Text writes the report as a table for a terminal.
func (r Report) Text(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "GROUP\tFIGURE\tVALUE\tUNIT\t95%\tN\tBAR\tMET\tNOTE")
	for _, row := range r.Rows {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", row.Group, row.Name, text(row.Value), row.Unit, row.interval(), row.N, row.Bar, row.Met, row.Note)
	}
	return t.Flush()
}

// Markdown writes one table for each group.
func (r Report) Markdown(w io.Writer) error {
	var b strings.Builder
	group := ""
	for _, row := range r.Rows {
		if row.Group != group {
			group = row.Group
			fmt.Fprintf(&b, "\n## %s\n\n| figure | value | 95%% | n | bar | met |\n|---|---|---|---|---|---|\n", group)
		}
		name := row.Name
		if row.Note != "" {
			name += " (" + row.Note + ")"
		}
		fmt.Fprintf(&b, "| %s | %s %s | %s | %d | %s | %s |\n", name, text(row.Value), row.Unit, row.interval(), row.N, row.Bar, row.Met)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (r Row) interval() string {
	if r.Low == 0 && r.High == 0 {
		return ""
	}
	return text(r.Low) + " to " + text(r.High)
}

// text shows three significant digits.
func text(v float64) string {
	if v == 0 || math.Abs(v) >= 100 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	digits := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	return strconv.FormatFloat(v, 'f', digits, 64)
}
