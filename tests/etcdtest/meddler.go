// SPDX-License-Identifier: Apache-2.0

package etcdtest

import (
	"context"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// A Meddler stands between clients and a server, speaks etcd's protocol and
// misbehaves as servers have been seen to: it closes watches, loses events,
// and answers from the past.
type Meddler struct {
	pb.UnimplementedKVServer
	pb.UnimplementedWatchServer
	pb.UnimplementedLeaseServer
	Endpoint string // plaintext client URL

	kv    pb.KVClient
	watch pb.WatchClient
	lease pb.LeaseClient

	mu           sync.Mutex
	past         int64 // revision that reads are answered from; 0 for the present
	deaf         bool  // watches deliver no events
	serializable int   // reads that asked for any member's own view
	reads        int
	watches      map[*watchLink]bool
}

// A watchLink is one watch stream of a client.
type watchLink struct {
	down grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]
	end  chan error
	mu   sync.Mutex // of sending down, and of ids
	ids  []int64    // open watches
}

// NewMeddler serves in front of the server at endpoint for the length of a
// test.
func NewMeddler(t testing.TB, endpoint string) *Meddler {
	t.Helper()
	u, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(u.Host, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &Meddler{Endpoint: "http://" + l.Addr().String(), watches: make(map[*watchLink]bool),
		kv: pb.NewKVClient(conn), watch: pb.NewWatchClient(conn), lease: pb.NewLeaseClient(conn)}
	srv := grpc.NewServer()
	pb.RegisterKVServer(srv, m)
	pb.RegisterWatchServer(srv, m)
	pb.RegisterLeaseServer(srv, m)
	var served sync.WaitGroup
	served.Go(func() { srv.Serve(l) }) // ends with Stop
	t.Cleanup(func() {
		srv.Stop()
		served.Wait()
		conn.Close()
	})
	return m
}

// Past answers all reads as of revision rev from now on, header and all, like
// a member that lags and does not know it; 0 ends that.
func (m *Meddler) Past(rev int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.past = rev
}

// Deafen lets watches lose all events while on.
func (m *Meddler) Deafen(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.deaf = on
}

// Reads returns how many reads there were, and how many of them asked for
// what any single member has (serializable) instead of what the cluster has.
func (m *Meddler) Reads() (all, serializable int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reads, m.serializable
}

// CancelWatches tells each client that its watches are over, on a stream that
// goes on, and returns how many there were.
func (m *Meddler) CancelWatches(reason string) int {
	n := 0
	for _, w := range m.streams() {
		w.mu.Lock()
		for _, id := range w.ids {
			n++
			// A client that has gone needs no message.
			_ = w.down.Send(&pb.WatchResponse{Header: &pb.ResponseHeader{}, WatchId: id, Canceled: true, CancelReason: reason})
		}
		w.ids = nil
		w.mu.Unlock()
	}
	return n
}

// EndWatches ends all watch streams with err, a gRPC status or nil, and
// returns how many there were.
func (m *Meddler) EndWatches(err error) int {
	all := m.streams()
	for _, w := range all {
		select {
		case w.end <- err:
		default: // ended already
		}
	}
	return len(all)
}

func (m *Meddler) streams() []*watchLink {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []*watchLink
	for w := range m.watches {
		all = append(all, w)
	}
	return all
}

// forward hands on what the client said beside its message.
func forward(ctx context.Context) context.Context {
	in, _ := metadata.FromIncomingContext(ctx)
	out := metadata.MD{}
	for k, v := range in {
		if !strings.HasPrefix(k, ":") && !strings.HasPrefix(k, "grpc-") && k != "content-type" && k != "user-agent" {
			out[k] = v
		}
	}
	return metadata.NewOutgoingContext(ctx, out)
}

// Range implements etcd's KV service.
func (m *Meddler) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	m.mu.Lock()
	m.reads++
	if r.Serializable {
		m.serializable++
	}
	past := m.past
	m.mu.Unlock()
	if past != 0 {
		r.Revision = past
	}
	resp, err := m.kv.Range(forward(ctx), r)
	if err == nil && past != 0 {
		resp.Header.Revision = past
	}
	return resp, err
}

// Txn implements etcd's KV service.
func (m *Meddler) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	return m.kv.Txn(forward(ctx), r)
}

// LeaseGrant implements etcd's Lease service.
func (m *Meddler) LeaseGrant(ctx context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	return m.lease.LeaseGrant(forward(ctx), r)
}

// LeaseRevoke implements etcd's Lease service.
func (m *Meddler) LeaseRevoke(ctx context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	return m.lease.LeaseRevoke(forward(ctx), r)
}

// LeaseTimeToLive implements etcd's Lease service.
func (m *Meddler) LeaseTimeToLive(ctx context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	return m.lease.LeaseTimeToLive(forward(ctx), r)
}

// LeaseKeepAlive implements etcd's Lease service.
func (m *Meddler) LeaseKeepAlive(down grpc.BidiStreamingServer[pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse]) error {
	ctx, cancel := context.WithCancel(forward(down.Context()))
	defer cancel()
	up, err := m.lease.LeaseKeepAlive(ctx)
	if err != nil {
		return err
	}
	for {
		r, err := down.Recv()
		if err != nil {
			return nil // the client has ended it
		}
		if err := up.Send(r); err != nil {
			return err
		}
		resp, err := up.Recv()
		if err != nil {
			return err
		}
		if err := down.Send(resp); err != nil {
			return err
		}
	}
}

// Watch implements etcd's Watch service.
func (m *Meddler) Watch(down grpc.BidiStreamingServer[pb.WatchRequest, pb.WatchResponse]) error {
	ctx, cancel := context.WithCancel(forward(down.Context()))
	defer cancel()
	up, err := m.watch.Watch(ctx)
	if err != nil {
		return err
	}
	w := &watchLink{down: down, end: make(chan error, 2)}
	m.mu.Lock()
	m.watches[w] = true
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watches, w)
	}()
	go func() {
		for {
			r, err := down.Recv()
			if err != nil || up.Send(r) != nil {
				cancel() // ends the receiver below
				return
			}
		}
	}()
	go func() { w.end <- m.events(w, up) }()
	return <-w.end
}

// events carries responses to the client until the server ends the stream.
func (m *Meddler) events(w *watchLink, up grpc.BidiStreamingClient[pb.WatchRequest, pb.WatchResponse]) error {
	for {
		resp, err := up.Recv()
		if err != nil {
			return err
		}
		m.mu.Lock()
		lost := m.deaf && len(resp.Events) > 0
		m.mu.Unlock()
		if lost {
			continue
		}
		w.mu.Lock()
		if resp.Created {
			w.ids = append(w.ids, resp.WatchId)
		}
		err = w.down.Send(resp)
		w.mu.Unlock()
		if err != nil {
			return err
		}
	}
}
