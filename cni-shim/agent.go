// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// agentTimeout bounds the question to weftd, from dialling to the last byte.
const agentTimeout = 2 * time.Second

// agentAnswerMax bounds the answer, in bytes: 20,000 peers fit.
const agentAnswerMax = 64 << 20

// agentStatus is what the plugin reads of weftd's status document.
type agentStatus struct {
	Ready    *bool  `json:"ready"`
	Reason   string `json:"reason"`
	Down     string `json:"down"` // why the node's own data plane is down, and has been for a while
	Problems []struct {
		Kind string `json:"kind"`
	} `json:"problems"`
}

// limited reports whether the agent knows of something that keeps this node's
// pods from their network: its own devices or table, or a lease that was lost.
// What is wrong with one peer, or with a file, is not that: the runtime would call
// the whole node not ready, and its pods would leave their Services.
func (s agentStatus) limited() bool {
	lost := false
	for _, p := range s.Problems {
		lost = lost || p.Kind == "LeaseLost"
	}
	return !*s.Ready && (s.Down != "" || lost)
}

// whyLimited returns one sentence on what keeps this node's pods from their
// network, "" when nothing does or nobody can say.
func whyLimited(ctx context.Context, socket string) string {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	st, err := askAgent(ctx, socket)
	switch {
	case err != nil || !st.limited():
		return ""
	case st.Reason == "":
		return "weftd is not ready and gives no reason"
	}
	return "weftd is not ready: " + st.Reason
}

// whyNotReady returns one sentence on why there is no lease: what weftd says
// itself, or why it cannot be asked.
func whyNotReady(ctx context.Context, socket string) string {
	ctx, cancel := context.WithTimeout(ctx, agentTimeout)
	defer cancel()
	st, err := askAgent(ctx, socket)
	switch {
	case err == nil && *st.Ready:
		return fmt.Sprintf("weftd at %s is ready, but its subnet.env cannot be read here (does it write --subnet-file elsewhere?)", socket)
	case err == nil && st.Reason == "":
		return "weftd is not ready and gives no reason"
	case err == nil:
		return "weftd is not ready: " + st.Reason
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Sprintf("weftd is not running: no socket at %s (is the agent started?)", socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Sprintf("weftd is not running: nobody listens on %s (has the agent died?)", socket)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("weftd does not answer on %s within %s (is the agent stuck?)", socket, agentTimeout)
	}
	return fmt.Sprintf("weftd cannot be asked: %v", err)
}

// askAgent gets /v1/status from weftd. It speaks HTTP/1.0 (RFC 1945) by hand,
// since one request whose answer ends with the connection needs no client.
// On success Ready is not nil.
func askAgent(ctx context.Context, socket string) (agentStatus, error) {
	conn, err := request(ctx, socket, "GET /v1/status HTTP/1.0\r\nHost: weftd\r\nAccept: application/json\r\n\r\n")
	if err != nil {
		return agentStatus{}, err
	}
	defer conn.Close()
	return readStatus(bufio.NewReader(io.LimitReader(conn, agentAnswerMax)), socket)
}

// request sends a request to the agent and returns the connection to read the
// answer from, which is bounded by ctx's deadline.
func request(ctx context.Context, socket, text string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		err = conn.SetDeadline(deadline)
	}
	if err == nil {
		_, err = io.WriteString(conn, text)
	}
	if err != nil {
		conn.Close() // the error before says why
		return nil, fmt.Errorf("ask %s: %w", socket, err)
	}
	return conn, nil
}

// skipHead reads an HTTP response up to its body and returns its first line.
func skipHead(r *bufio.Reader) (first string, err error) {
	first, err = r.ReadString('\n')
	for line := first; err == nil && strings.TrimSpace(line) != ""; {
		line, err = r.ReadString('\n')
	}
	return first, err
}

// readStatus reads an HTTP response whose body is a status document, whatever
// its status code: a weftd that is not ready may well answer 503.
func readStatus(r *bufio.Reader, socket string) (agentStatus, error) {
	first, err := skipHead(r)
	var st agentStatus
	if err == nil {
		err = json.NewDecoder(r).Decode(&st)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return agentStatus{}, fmt.Errorf("ask %s: %w", socket, err)
	}
	if err != nil || st.Ready == nil {
		return agentStatus{}, fmt.Errorf("%s answers %.80q and no status document (is this weftd's socket?)", socket, strings.TrimSpace(first))
	}
	return st, nil
}
