// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"weft.dev/weft/tests/netlab"
)

func main() {
	if code, ran := netlab.Stage(os.Args); ran {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	if netlab.Inside() {
		os.Exit(control(ctx))
	}
	os.Exit(command(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// requestEnv carries the request from the launcher to the control process.
const requestEnv = "WEFT_FAULTS_REQUEST"

// control is the process inside the lab. It writes its results, as JSON, to
// the lab's standard output, which nothing else is written to.
func control(ctx context.Context) int {
	var q request
	err := json.Unmarshal([]byte(os.Getenv(requestEnv)), &q)
	if err == nil {
		var all []result
		if all, err = q.run(ctx, os.Stderr); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(all)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "weft-faults: campaign %s: %v\n", q.Campaign, err)
		return 1
	}
	return 0
}

// launch runs one campaign in a lab of its own.
func (q request) launch(ctx context.Context, log io.Writer) ([]result, error) {
	var all []result
	err := netlab.Launch{Stderr: log}.Ask(ctx, requestEnv, q, &all)
	if err == nil && len(all) == 0 {
		err = errors.New("nothing was injected")
	}
	if err != nil {
		return nil, fmt.Errorf("campaign %s: %w", q.Campaign, err)
	}
	return all, nil
}
