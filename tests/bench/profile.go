// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"weft.dev/weft/tests/netlab"
)

// profile writes a profile of the agent, "heap", or "cpu" of the time to come,
// if profiles are asked for, and /proc/PID/status and the
// agent's log after it. An agent that has just been started is waited for.
func (n *node) profile(ctx context.Context, name, when string, length time.Duration) error {
	if n.q.Profiles == "" {
		return nil
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", n.Path("/run/weft/weftd.sock"))
	}}}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, length+30*time.Second)
	defer cancel()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://weftd/v1/profile/%s?seconds=%d", name, max(1, int(length.Seconds()))), nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err == nil {
			defer resp.Body.Close()
			return n.keep(name+", "+when, resp)
		}
		if err := netlab.Pause(ctx, time.Millisecond); err != nil {
			return fmt.Errorf("profile %s: %w", name, err)
		}
	}
}

func (n *node) keep(name string, resp *http.Response) error {
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return fmt.Errorf("profile %s: %s, %.100q: %w", name, resp.Status, b, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.AgentPID()))
	log, lerr := os.ReadFile(n.lab.LogPath(n.Name()))
	file := strings.ReplaceAll(fmt.Sprintf("%s, %s", n.q, name), " ", "-")
	return errors.Join(err, lerr,
		os.WriteFile(filepath.Join(n.q.Profiles, file+".log"), log, 0o644),
		os.WriteFile(filepath.Join(n.q.Profiles, file+".pprof"), b, 0o644),
		os.WriteFile(filepath.Join(n.q.Profiles, file+".status"), status, 0o644))
}
