// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"net"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
)

// hasty is a server that cancels each watch and then goes on about it.
type hasty struct {
	etcdserverpb.UnimplementedWatchServer
}

func (hasty) Watch(s etcdserverpb.Watch_WatchServer) error {
	head := &etcdserverpb.ResponseHeader{Revision: 7}
	events := []*mvccpb.Event{{Kv: &mvccpb.KeyValue{Key: []byte("k"), ModRevision: 7}}}
	for id := int64(1); ; {
		asked, err := s.Recv()
		if err != nil {
			return err
		}
		if asked.GetCreateRequest() == nil {
			continue // the client's cancel of a watch that ended
		}
		for _, r := range []*etcdserverpb.WatchResponse{
			{Header: head, WatchId: id, Created: true},
			{Header: head, WatchId: id, Canceled: true, CancelReason: "said the test"},
			{Header: head, WatchId: id, Events: events},
			{Header: head, WatchId: id, Events: events},
			{Header: head, WatchId: id, Canceled: true, CancelReason: "said the test again"},
		} {
			if err := s.Send(r); err != nil {
				return err
			}
		}
		id++
	}
}

// Without endWatches the client panics in one of the first of these watches.
func TestEventsOfACanceledWatch(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	etcdserverpb.RegisterWatchServer(server, hasty{})
	go server.Serve(l)
	defer server.Stop()
	s, err := New(Options{Endpoints: []string{"http://" + l.Addr().String()}, Prefix: "/weft"})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 100 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		c, err := s.client(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for r := range c.Watch(ctx, "k") {
			if len(r.Events) > 0 {
				t.Errorf("an event of a watch that is canceled: %v", r)
			}
		}
		if ctx.Err() != nil {
			t.Fatal("a watch that is canceled does not end")
		}
		cancel()
	}
}
