// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"weft.dev/weft/cni-shim/ledger"
)

// enforcing serves answers to the plugin's question, and returns the socket
// and what was asked.
func enforcing(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	path := filepath.Join(shortDir(t), "weftd.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/admit/{container}/{interface}", h)
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return path
}

func TestAdmit(t *testing.T) {
	status := func(code int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if r.PathValue("container") != "c-1" || r.PathValue("interface") != "eth%0" {
				code, text = http.StatusTeapot, "asked for "+r.URL.Path
			}
			w.WriteHeader(code)
			w.Write([]byte(text))
		}
	}
	for _, tt := range []struct {
		name, socket, err string
	}{
		{"in force", enforcing(t, status(204, "")), ""},
		{"an agent that enforces nothing", enforcing(t, status(404, "404 page not found")), ""},
		{"an agent that cannot yet", enforcing(t, status(503, "the first snapshot of policies is waited for\n")), "no policies for the pod yet: weftd: the first snapshot of policies is waited for"},
		{"no agent", filepath.Join(t.TempDir(), "weftd.sock"), "weftd cannot be asked"},
		{"an agent that dies", answerWith(t, "HTTP/1.1 20"), "does not answer"},
		{"another program", answerWith(t, "hello\r\n\r\n"), `answers "hello"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			k := ledger.Key{ContainerID: "c-1", IfName: "eth%0"}
			err := admit(t.Context(), netConf{AgentSocket: tt.socket, OnAgentDown: deny}, k)
			switch {
			case tt.err == "" && err != nil:
				t.Errorf("error %v", err)
			case tt.err != "" && (!isCode(err, types.ErrTryAgainLater) || !strings.Contains(err.Error(), tt.err)):
				t.Errorf("error %v, want one of code %d with %q", err, types.ErrTryAgainLater, tt.err)
			}
			for _, down := range []onAgentDown{open, ""} {
				if err := admit(t.Context(), netConf{AgentSocket: tt.socket, OnAgentDown: down}, k); err != nil {
					t.Errorf("onAgentDown %q: %v", down, err)
				}
			}
		})
	}
}

// addAdmitted: the agent is asked when the attachment is in the ledger, and a
// pod that it does not admit is detached again.
func addAdmitted(t *testing.T, p plugins) {
	n, pod := newNode(t, p, "dual"), newNetns(t)
	var known []string
	refuse := false
	n.conf["agentSocket"] = enforcing(t, func(w http.ResponseWriter, r *http.Request) {
		a, err := attachmentOf(n.dataDir(), r.PathValue("container"), r.PathValue("interface"))
		if err == nil {
			_, stamp, _, loadErr := a.load()
			known, err = append(known, string(stamp.Phase)), loadErr
		}
		switch {
		case err != nil:
			http.Error(w, err.Error(), http.StatusTeapot)
		case refuse:
			http.Error(w, "not now", http.StatusServiceUnavailable)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	})
	n.conf["onAgentDown"] = "deny"
	n.ok(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path})
	if !slices.Equal(known, []string{string(ledger.Added)}) {
		t.Errorf("the agent saw %q", known)
	}
	n.ok(t, call{command: "DEL", id: "c1", ifName: "eth0", netns: pod.path})
	refuse = true
	n.fails(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path}, types.ErrTryAgainLater, "not now")
	n.clean(t)
	n.conf["onAgentDown"] = "maybe"
	n.fails(t, call{command: "ADD", id: "c1", ifName: "eth0", netns: pod.path}, types.ErrInvalidNetworkConfig, `onAgentDown is "maybe": want one of ["deny" "open"]`)
}
