// SPDX-License-Identifier: Apache-2.0

package kubeapi

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"weft.dev/weft/internal/waiting"
)

// listTimeout bounds a listing, which may have to be paged.
const listTimeout = time.Minute

// Reflect keeps store what lw lists and watches, until ctx ends, and says in w
// why that does not get on.
func (c *Conn) Reflect(ctx context.Context, lw *cache.ListWatch, kind runtime.Object, store cache.ReflectorStore, w *waiting.Reason) {
	observed := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			ctx, cancel := context.WithTimeout(ctx, listTimeout)
			defer cancel()
			list, err := lw.ListWithContext(ctx, o)
			c.observe(ctx, w, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			stream, err := lw.WatchWithContext(ctx, o)
			if o.SendInitialEvents == nil || !apierrors.IsInvalid(err) {
				c.observe(ctx, w, err)
			} // else the server (1.30 to 1.33) cannot list that way, and is asked in another
			return stream, err
		},
	}
	silent := logr.Discard() // what it would log comes back through w, once
	r := cache.NewReflectorWithOptions(observed, kind, store, cache.ReflectorOptions{
		Logger: &silent, Name: "weftd", Backoff: Backoff(),
	})
	ended := make(chan struct{})
	go func() {
		r.RunWithContext(Quiet(ctx))
		close(ended)
	}()
	select { // a Reflector that pauses notices the end of ctx only after that
	case <-ctx.Done():
	case <-ended:
	}
}

// Quiet keeps client-go, which logs by itself what it also returns, from doing
// so in calls with ctx.
func Quiet(ctx context.Context) context.Context { return klog.NewContext(ctx, logr.Discard()) }

// observe records how a call has ended.
func (c *Conn) observe(ctx context.Context, w *waiting.Reason, err error) {
	switch {
	case ctx.Err() == context.Canceled:
	case apierrors.IsResourceExpired(err), apierrors.IsGone(err): // a listing follows
	case err == nil:
		w.Clear()
	default:
		w.Set(c.Unreachable(err))
	}
}
