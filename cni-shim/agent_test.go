// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// answerWith listens on a new socket and gives each client the same bytes.
func answerWith(t testing.TB, answer string) string {
	t.Helper()
	return listen(t, func(c net.Conn) {
		r := bufio.NewReader(c)
		for line := ""; line != "\r\n"; {
			var err error
			if line, err = r.ReadString('\n'); err != nil {
				return
			}
		}
		io.WriteString(c, answer) // a client that has gone away is no concern
		c.Close()
	})
}

// listen serves a new unix socket until the test ends; each connection is
// closed then if serve has not closed it.
func listen(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	path := filepath.Join(shortDir(t), "weftd.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			t.Cleanup(func() { c.Close() })
			go serve(c)
		}
	}()
	return path
}

// shortDir is t.TempDir for sockets, whose path may have 107 bytes only.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "weft-cni-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestWhyNotReady(t *testing.T) {
	const ok = "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n"
	deadSocket := filepath.Join(shortDir(t), "weftd.sock")
	l, err := net.Listen("unix", deadSocket)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	noSocket := filepath.Join(shortDir(t), "weftd.sock")
	stuck := listen(t, func(net.Conn) {})
	for _, c := range []struct{ name, socket, want string }{
		{"not started", noSocket, "weftd is not running: no socket at " + noSocket + " (is the agent started?)"},
		{"died", deadSocket, "weftd is not running: nobody listens on " + deadSocket + " (has the agent died?)"},
		{"stuck", stuck, "weftd does not answer on " + stuck + " within 2s (is the agent stuck?)"},
		{"waiting", answerWith(t, ok+`{"ready":false,"reason":"waiting for etcd http://10.0.0.1:2379: connection refused"}`),
			"weftd is not ready: waiting for etcd http://10.0.0.1:2379: connection refused"},
		{"waiting, as 503", answerWith(t, "HTTP/1.0 503 Service Unavailable\r\n\r\n"+`{"ready":false,"reason":"no lease"}`), "weftd is not ready: no lease"},
		{"silent about it", answerWith(t, ok+`{"ready":false}`), "weftd is not ready and gives no reason"},
		{"ready", answerWith(t, ok+`{"ready":true}`), "is ready, but its subnet.env cannot be read here"},
		{"another document", answerWith(t, ok+`{"up":true}`), `answers "HTTP/1.0 200 OK" and no status document`},
		{"no document", answerWith(t, "HTTP/1.0 404 Not Found\r\n\r\n404 page not found"), `answers "HTTP/1.0 404 Not Found" and no status document`},
		{"another protocol", answerWith(t, "SSH-2.0-OpenSSH\r\n"), `answers "SSH-2.0-OpenSSH" and no status document`},
		{"nothing", answerWith(t, ""), `answers "" and no status document`},
		{"a directory", t.TempDir(), "weftd is not running"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := whyNotReady(t.Context(), c.socket); !strings.Contains(got, c.want) {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// TestAskHTTPServer asks the server that weftd uses: net/http.
func TestAskHTTPServer(t *testing.T) {
	path := filepath.Join(shortDir(t), "weftd.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		// Longer than one write buffer, so that HTTP/1.1 would be chunked.
		fmt.Fprintf(w, `{"peers":[%s0],"reason":"waiting for a subnet","ready":false}`, strings.Repeat("1,", 20000))
	})
	srv := &http.Server{Handler: mux}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	st, err := askAgent(t.Context(), path)
	if err != nil || *st.Ready || st.Reason != "waiting for a subnet" {
		t.Errorf("got %+v, %v", st, err)
	}
}
