// SPDX-License-Identifier: Apache-2.0

package etcd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"

	"weft.dev/weft/internal/waiting"
	"weft.dev/weft/subnet"
)

// How a dead connection is noticed and replaced. With a ping after 10 s of
// silence (the least that grpc-go and etcd's default enforcement accept) and
// 10 s for its answer, half-open TCP is found within 20 s.
const (
	pingAfter    = 10 * time.Second
	pingTimeout  = 10 * time.Second
	maxReconnect = 2 * time.Second // pause between connection attempts
	maxRetries   = 3               // of one call, by the client: another member, a fresh token
)

// errClosed is what a blocked call returns after Close.
var errClosed = errors.New("the etcd store is closed")

// Store leases subnets in one etcd. Its methods may run at the same time,
// each of Config, Hold, Watch and WatchConfig once at a time.
type Store struct {
	o         Options
	endpoints []endpoint
	tls       *rotating // nil for plaintext
	dice      *dice

	life waiting.Life  // ends with Close
	dial chan struct{} // holds one token while conn is being set
	conn *clientv3.Client

	reads singleflight.Group // see join

	configWait, holdWait, watchWait, newsWait waiting.Reason
}

// New checks o, reads the TLS files once and connects to nothing.
func New(o Options) (*Store, error) {
	o, err := o.complete()
	if err != nil {
		return nil, err
	}
	s := &Store{o: o, dice: newDice(), dial: make(chan struct{}, 1)}
	if s.endpoints, err = o.endpoints(); err != nil {
		return nil, err
	}
	if s.endpoints[0].secure {
		if s.tls, err = newRotating(o); err != nil {
			return nil, err
		}
	}
	s.life = waiting.NewLife(errClosed)
	s.configWait.Log = o.Log.WithField("op", "read configuration")
	s.holdWait.Log = o.Log.WithField("op", "hold lease")
	s.watchWait.Log = o.Log.WithField("op", "watch leases")
	s.newsWait.Log = o.Log.WithField("op", "watch configuration")
	return s, nil
}

// Close ends all calls and the connection. Leases stay in the store. Only the
// first call does anything.
func (s *Store) Close() error {
	s.life.End()
	s.dial <- struct{}{}
	defer func() { <-s.dial }()
	if s.conn == nil {
		return nil
	}
	err := s.conn.Close()
	s.conn = nil
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close the connection to etcd: %w", err)
	}
	return nil
}

// Reconnect drops the connection; what needs one makes a new one. For when
// this node's addresses have changed: a connection from an address that is
// gone answers nothing, and is only found dead by its pings. Calls under way
// fail, and are made again by whoever made them.
func (s *Store) Reconnect(ctx context.Context) error {
	select {
	case s.dial <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	conn := s.conn
	s.conn = nil
	<-s.dial
	if conn == nil {
		return nil
	}
	if err := conn.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close the connection to etcd: %w", err)
	}
	return nil
}

// Reason says in one sentence what the store waits for: etcd out of reach,
// the configuration missing, the pool exhausted, the node's name held by
// another. It is empty when the store gets on.
func (s *Store) Reason() string {
	return waiting.First(&s.configWait, &s.holdWait, &s.watchWait, &s.newsWait)
}

// client returns the connected client. With a user and password, the first
// call logs in and fails when that fails.
func (s *Store) client(ctx context.Context) (*clientv3.Client, error) {
	select {
	case s.dial <- struct{}{}:
		defer func() { <-s.dial }()
	case <-s.life.Context().Done():
		return nil, errClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.life.Context().Err() != nil {
		return nil, errClosed
	}
	if s.conn != nil {
		return s.conn, nil
	}
	conn, err := clientv3.New(s.clientConfig())
	if err != nil {
		return nil, err
	}
	s.conn = conn
	return conn, nil
}

func (s *Store) clientConfig() clientv3.Config {
	c := clientv3.Config{
		Context:              s.life.Context(),
		DialTimeout:          s.o.CallTimeout,
		DialKeepAliveTime:    pingAfter,
		DialKeepAliveTimeout: pingTimeout,
		MaxUnaryRetries:      maxRetries,
		Username:             s.o.Username,
		Password:             s.o.Password,
		Logger:               zap.NewNop(), // what matters comes back as errors
		DialOptions: []grpc.DialOption{
			grpc.WithChainUnaryInterceptor(failFast),
			grpc.WithChainStreamInterceptor(endWatches),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           grpcbackoff.Config{BaseDelay: minPause, Multiplier: 2, Jitter: 0.2, MaxDelay: maxReconnect},
				MinConnectTimeout: s.o.CallTimeout,
			}),
		},
	}
	for _, e := range s.endpoints {
		c.Endpoints = append(c.Endpoints, e.url)
	}
	if s.tls != nil {
		c.DialOptions = append(c.DialOptions, grpc.WithTransportCredentials(s.tls))
	}
	return c
}

// failFast makes a call fail as soon as the connection does, so that the
// cause is known at once instead of a bare deadline; the client's own calls
// wait for a connection, silently.
func failFast(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, cc, append(opts, grpc.WaitForReady(false))...)
}

// call runs f with a connected client and the call's deadline.
func (s *Store) call(ctx context.Context, f func(context.Context, *clientv3.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, s.o.CallTimeout)
	defer cancel()
	c, err := s.client(ctx)
	if err != nil {
		return err
	}
	return f(ctx, c)
}

// get reads key, linearizably.
func (s *Store) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	var resp *clientv3.GetResponse
	err := s.call(ctx, func(ctx context.Context, c *clientv3.Client) (err error) {
		resp, err = c.Get(ctx, key, opts...)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", key, err)
	}
	return resp, nil
}

// unreachable words err, from a call, as what is waited for.
func (s *Store) unreachable(err error) string {
	var urls []string
	for _, e := range s.endpoints {
		urls = append(urls, e.url)
	}
	return fmt.Sprintf("waiting for etcd %s: %s", strings.Join(urls, ","), s.cause(err))
}

// cause returns the innermost useful words of an error of the client.
func (s *Store) cause(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Sprintf("no answer within %s", s.o.CallTimeout)
	}
	var known rpctypes.EtcdError
	if errors.As(err, &known) {
		return known.Error()
	}
	var coded interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &coded) {
		return err.Error()
	}
	text := coded.GRPCStatus().Message()
	if coded.GRPCStatus().Code() == codes.Unavailable {
		// e.g. connection error: desc = "transport: Error while dialing:
		// dial tcp 127.0.0.1:2379: connect: connection refused"
		if _, quoted, found := strings.Cut(text, "desc = "); found {
			if inner, err := strconv.Unquote(quoted); err == nil {
				text = inner
			}
		}
		text = strings.TrimPrefix(text, "transport: ")
		text = strings.TrimPrefix(text, "Error while dialing: ")
	}
	return text
}

// watchLink pokes the returned channel after the connection to etcd was lost
// and after it is back, the latter at a random moment of a second: what a
// restarted server holds is looked at once, but not by all nodes at once.
// The returned function ends it.
func (s *Store) watchLink(ctx context.Context) (<-chan struct{}, func()) {
	ctx, cancel := context.WithCancel(ctx)
	poke, stopped := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(stopped)
		for b := (&backoff{dice: s.dice}); ctx.Err() == nil; b.pause(ctx) {
			if c, err := s.client(ctx); err == nil {
				s.pokeLink(ctx, c.ActiveConnection(), poke)
			}
		}
	}()
	return poke, func() {
		cancel()
		<-stopped
	}
}

// pokeLink pokes as watchLink says until ctx ends or conn was closed.
func (s *Store) pokeLink(ctx context.Context, conn *grpc.ClientConn, poke chan<- struct{}) {
	state := conn.GetState()
	for up := state == connectivity.Ready; state != connectivity.Shutdown && conn.WaitForStateChange(ctx, state); {
		state = conn.GetState()
		if up == (state == connectivity.Ready) {
			continue
		}
		if up = !up; up {
			waiting.Pause(ctx, s.dice.between(0, time.Second))
		}
		select {
		case poke <- struct{}{}:
		default: // one is enough
		}
	}
}

// configKey is the key of the network's configuration.
func (s *Store) configKey() string { return s.o.Prefix + "/config" }

// subnetsKey is what all lease keys begin with. The slash at the end keeps
// "subnets-backup/x" and the like out.
func (s *Store) subnetsKey() string { return s.o.Prefix + "/subnets/" }

// plaintext are the standing problems about how etcd is reached.
func (s *Store) plaintext() []subnet.Problem {
	var ps []subnet.Problem
	for _, e := range s.endpoints {
		if e.exposed {
			ps = append(ps, subnet.Problem{Kind: "StorePlaintext", Object: e.url,
				Detail: "leases are read without TLS beyond loopback: anyone on the path can redirect pods; use https://"})
		}
	}
	return ps
}
