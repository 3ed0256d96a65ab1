// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"weft.dev/weft/cni-shim/ledger"
)

// onAgentDown is what becomes of a pod that the agent cannot be told of while
// it enforces policies.
type onAgentDown string

// The pod does not start, and the runtime tries again; or it starts, and may
// send and receive what the agent's last table lets it: nothing, since that does
// not know its addresses, or what a pod that had them might and ended since the
// agent went, or everything where there is no table.
const (
	deny onAgentDown = "deny"
	open onAgentDown = "open"
)

// admitTimeout bounds what a pod's start waits for the agent: it may have to
// ask the API for the pod.
const admitTimeout = 10 * time.Second

// admitPath is where the agent is told of an attachment in the ledger, which
// follows as container/interface (cmd/internal/api).
const admitPath = "/v1/admit/"

// Answers of HTTP (RFC 9110, section 15) that let the pod start.
const (
	noContent = 204 // the policies are in force
	notFound  = 404 // this agent enforces none
)

// reasonMax bounds what is read of the agent's answer, in bytes.
const reasonMax = 4 << 10

// admit tells the agent of attachment k, and returns when the policies for its
// addresses are in force: until then nothing passes from or to it. A nil error
// also stands for an agent that enforces none.
func admit(ctx context.Context, conf netConf, k ledger.Key) error {
	if conf.OnAgentDown == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, admitTimeout)
	defer cancel()
	err := askToAdmit(ctx, conf.AgentSocket, k)
	if err == nil || conf.OnAgentDown == open {
		return nil
	}
	return types.NewError(types.ErrTryAgainLater, fmt.Sprintf("no policies for the pod yet: %v", err), "")
}

func askToAdmit(ctx context.Context, socket string, k ledger.Key) error {
	conn, err := request(ctx, socket, fmt.Sprintf("POST %s%s/%s HTTP/1.0\r\nHost: weftd\r\nContent-Length: 0\r\n\r\n",
		admitPath, url.PathEscape(k.ContainerID), url.PathEscape(k.IfName)))
	if err != nil {
		return fmt.Errorf("weftd cannot be asked: %w", err)
	}
	defer conn.Close()
	r := bufio.NewReader(io.LimitReader(conn, reasonMax))
	first, err := skipHead(r)
	if err != nil {
		return fmt.Errorf("weftd at %s does not answer: %w", socket, err)
	}
	code := 0
	if _, err := fmt.Sscanf(first, "HTTP/1.%d %d", new(int), &code); err != nil {
		return fmt.Errorf("%s answers %.80q (is this weftd's socket?)", socket, strings.TrimSpace(first))
	}
	if code == noContent || code == notFound {
		return nil
	}
	reason, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("weftd's answer: %w", err)
	}
	return fmt.Errorf("weftd: %s", strings.TrimSpace(string(reason)))
}
