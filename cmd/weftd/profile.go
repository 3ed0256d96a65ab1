// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/http"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	profileSeconds    = 10 // of a CPU profile unless the request says otherwise
	maxProfileSeconds = 50 // an answer has to be written within a minute: see serveHTTP
)

// gcPercent is how much garbage there may be beside what is in use, percent.
// What is in use is small and lives long, so that collecting it twice as often
// as Go does by itself costs little time; memory is what a node has least of.
// GOGC in the environment says otherwise.
const gcPercent = 50

// collectSooner tells the garbage collector, unless the environment does.
func collectSooner(env func(string) (string, bool)) {
	if _, set := env("GOGC"); !set {
		debug.SetGCPercent(gcPercent)
	}
}

// profile answers with a profile of the agent for `go tool pprof`: "cpu" of
// the next ?seconds=, or one of runtime/pprof by its name. "heap" is what is
// in use after a collection that it asks for.
func profile(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	if name == "cpu" {
		profileCPU(w, r)
		return
	}
	p := pprof.Lookup(name)
	if p == nil {
		http.Error(w, fmt.Sprintf("no profile %q; there are cpu, %s", name, strings.Join(profileNames(), ", ")), http.StatusNotFound)
		return
	}
	if name == "heap" {
		runtime.GC()
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_ = p.WriteTo(w, 0) // a reader that has gone away is its own business
}

func profileNames() []string {
	var names []string
	for _, p := range pprof.Profiles() {
		names = append(names, p.Name())
	}
	slices.Sort(names)
	return names
}

func profileCPU(w http.ResponseWriter, r *http.Request) {
	seconds := profileSeconds
	if s := r.URL.Query().Get("seconds"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > maxProfileSeconds {
			http.Error(w, fmt.Sprintf("seconds=%q: want 1 to %d", s, maxProfileSeconds), http.StatusBadRequest)
			return
		}
		seconds = n
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := pprof.StartCPUProfile(w); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	defer pprof.StopCPUProfile()
	t := time.NewTimer(time.Duration(seconds) * time.Second)
	defer t.Stop()
	select {
	case <-r.Context().Done():
	case <-t.C:
	}
}
