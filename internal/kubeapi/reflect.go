// SPDX-License-Identifier: Apache-2.0

package kubeapi

import (
	"context"
	"errors"
	"reflect"
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
			stream, err := Opened(lw.WatchWithContext(ctx, o))
			if o.SendInitialEvents == nil || !apierrors.IsInvalid(err) {
				c.observe(ctx, w, err)
			} // else the server (1.30 to 1.33) cannot list that way, and is asked in another
			return stream, err
		},
	}
	pauses := Backoff()
	pauses.Cap = c.pause
	silent := logr.Discard() // what it would log comes back through w, once
	r := cache.NewReflectorWithOptions(observed, kind, store, cache.ReflectorOptions{
		Logger: &silent, Name: "weftd", Backoff: pauses,
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

// Opened returns a watch as a call has, but for one that never was: of a
// connection that was closed before there was an answer, as by a load balancer
// without a server behind it, client-go makes an empty watch.
func Opened(w watch.Interface, err error) (watch.Interface, error) {
	if err == nil && reflect.TypeOf(w) == reflect.TypeOf(watch.NewEmptyWatch()) {
		return nil, errors.New("the connection was closed before there was an answer")
	}
	return w, err
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
