// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"weft.dev/weft/internal/kubeapi"
	"weft.dev/weft/policy"
)

// pageSize is how many objects of a listing are in memory at once, whole, with
// servers that do not stream it.
const pageSize = 500

// What is watched, by index.
const (
	pods = iota
	namespaces
	policies
	kinds
)

// A kind of objects that is watched.
type kind struct {
	resource string
	client   *rest.RESTClient
	list     func() runtime.Object
}

func newKinds(conn *kubeapi.Conn) ([kinds]kind, error) {
	core, err := conn.Client(corev1.SchemeGroupVersion, corev1.AddToScheme)
	if err != nil {
		return [kinds]kind{}, err
	}
	networking, err := conn.Client(networkingv1.SchemeGroupVersion, networkingv1.AddToScheme)
	if err != nil {
		return [kinds]kind{}, err
	}
	return [kinds]kind{
		pods:       {"pods", core, func() runtime.Object { return &corev1.PodList{} }},
		namespaces: {"namespaces", core, func() runtime.Object { return &corev1.NamespaceList{} }},
		policies:   {"networkpolicies", networking, func() runtime.Object { return &networkingv1.NetworkPolicyList{} }},
	}, nil
}

// listWatch lists and watches k as records that r makes.
func (s *Source) listWatch(k *kind, r *reader) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, _ metav1.ListOptions) (runtime.Object, error) {
			return s.listAll(ctx, k, r)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			w, err := kubeapi.Opened(k.get(&o).Watch(ctx))
			if err != nil {
				return nil, err
			}
			return newStream(w, r), nil
		},
	}
}

// get is a request for k. client-go repeats it once when its connection was
// closed, which may have been idle; more would only hide that the API is away.
func (k *kind) get(o *metav1.ListOptions) *rest.Request {
	return k.client.Get().MaxRetries(1).Resource(k.resource).SpecificallyVersionedParams(o, metav1.ParameterCodec, schema.GroupVersion{Version: "v1"})
}

// listAll reads all pages. It does not ask for what the server's cache has, for
// that is not paged: it would come whole.
func (s *Source) listAll(ctx context.Context, k *kind, by *reader) (runtime.Object, error) {
	out := &internalversion.List{}
	o := metav1.ListOptions{Limit: pageSize}
	for {
		page, err := s.listPage(ctx, k, &o)
		if err != nil {
			return nil, err
		}
		at, err := meta.ListAccessor(page)
		if err != nil {
			return nil, fmt.Errorf("list of %s: %w", k.resource, err)
		}
		err = meta.EachListItem(page, func(obj runtime.Object) error {
			r, err := by.record(obj)
			out.Items = append(out.Items, r)
			return err
		})
		if err != nil {
			return nil, err
		}
		out.ResourceVersion = at.GetResourceVersion()
		if o.Continue = at.GetContinue(); o.Continue == "" {
			return out, nil
		}
	}
}

func (s *Source) listPage(ctx context.Context, k *kind, o *metav1.ListOptions) (runtime.Object, error) {
	ctx, cancel := s.conn.Call(ctx)
	defer cancel()
	page := k.list()
	err := k.get(o).Do(ctx).Into(page)
	return page, err
}

// readPod reads one pod.
func (s *Source) readPod(ctx context.Context, namespace, name string) (*policy.Pod, error) {
	ctx, cancel := s.conn.Call(ctx)
	defer cancel()
	k, pod := &s.kinds[pods], &corev1.Pod{}
	err := k.client.Get().Namespace(namespace).Resource(k.resource).Name(name).Do(ctx).Into(pod)
	if apierrors.IsNotFound(err) {
		return nil, ErrNoPod
	}
	if err != nil {
		_, text := s.conn.Unreachable(err)
		return nil, errors.New(text)
	}
	r, err := s.reads.record(pod)
	if err != nil {
		return nil, err
	}
	return r.pod, nil
}

// A stream is a watch whose objects are records. It differs from watch.Filter
// in that it ends when it is stopped, whoever reads it.
type stream struct {
	from watch.Interface
	out  chan watch.Event
	stop func()
	done chan struct{}
}

func newStream(from watch.Interface, r *reader) *stream {
	s := &stream{from: from, out: make(chan watch.Event), done: make(chan struct{})}
	s.stop = sync.OnceFunc(func() { close(s.done) })
	go s.run(r)
	return s
}

// Stop ends the watch.
func (s *stream) Stop() {
	s.stop()
	s.from.Stop()
}

// ResultChan returns what comes.
func (s *stream) ResultChan() <-chan watch.Event { return s.out }

func (s *stream) run(r *reader) {
	defer close(s.out)
	for e := range s.from.ResultChan() {
		if e.Type != watch.Error {
			e = recordEvent(e, r)
		}
		select {
		case s.out <- e:
		case <-s.done:
			return
		}
	}
}

// recordEvent is e with a record. What is none is an error, after which what
// there is is listed.
func recordEvent(e watch.Event, r *reader) watch.Event {
	rec, err := r.record(e.Object)
	if err != nil {
		return watch.Event{Type: watch.Error, Object: &metav1.Status{Status: metav1.StatusFailure,
			Code: http.StatusInternalServerError, Reason: metav1.StatusReasonInternalError, Message: err.Error()}}
	}
	e.Object = rec
	return e
}
