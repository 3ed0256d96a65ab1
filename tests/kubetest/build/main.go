// SPDX-License-Identifier: Apache-2.0

// Command build makes the kube-apiserver that the tests run, or says where it is.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"weft.dev/weft/tests/kubetest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := kubetest.Build(ctx, func(step string) { fmt.Fprintln(os.Stderr, "build:", step) })
	if err == nil {
		var path string
		if path, err = kubetest.Path(); err == nil {
			fmt.Println(path)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
