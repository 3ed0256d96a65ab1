// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// endWatches keeps from the client what a server says of a watch after it has
// canceled it. The client of v3.7.3 sends that on a closed channel, and the
// process ends (etcd-io/etcd#21969).
func endWatches(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil || method != etcdserverpb.Watch_Watch_FullMethodName {
		return s, err
	}
	return &watchStream{ClientStream: s, canceled: map[int64]bool{}}, nil
}

// A watchStream is received from by one goroutine, as all gRPC streams are.
type watchStream struct {
	grpc.ClientStream
	canceled map[int64]bool // watches by their IDs, which are the stream's
}

// RecvMsg receives the next message that the client may see.
func (w *watchStream) RecvMsg(m any) error {
	for {
		if err := w.ClientStream.RecvMsg(m); err != nil {
			return err
		}
		if r, ok := m.(*etcdserverpb.WatchResponse); !ok || w.pass(r) {
			return nil
		}
	}
}

// pass notes which watches there are, and reports whether the one that r is of
// is not canceled.
func (w *watchStream) pass(r *etcdserverpb.WatchResponse) bool {
	switch {
	case r.Created:
		delete(w.canceled, r.WatchId)
	case w.canceled[r.WatchId]:
		return false
	case r.Canceled && r.CompactRevision == 0: // the client keeps a compacted one
		w.canceled[r.WatchId] = true
	}
	return true
}
