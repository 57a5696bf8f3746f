package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/discov-go/discov"
	gozero "github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/logx"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/discov-go/discov/test/bench/internal/results"
)

const (
	prefix = "bench/"
	value  = "127.0.0.1:8080"
	ttl    = 10 // in seconds: discov's default, and go-zero's
)

// key is that of registration i, without the lease ID that each kind puts after it.
func key(i int) string { return fmt.Sprintf("%s%06d", prefix, i) }

// A kind is a way to register.
type kind interface {
	// register makes registration i and keeps it. It is safe for concurrent use, each i once.
	register(i int) error
	// stop withdraws all, at most atOnce at a time, and releases everything.
	stop(atOnce int) error
}

func newKind(name, endpoint string, size int) (kind, error) {
	switch name {
	case results.Raw:
		return newRaw(endpoint, size)
	case results.GoZero:
		return newGoZero(endpoint, size), nil
	case results.Discov:
		return newOurs(endpoint, size), nil
	}
	return nil, fmt.Errorf("%q is no kind", name)
}

// each calls f for 0 to n-1, at most atOnce at a time, and returns the first error.
func each(n, atOnce int, f func(i int) error) error {
	var calls errgroup.Group
	calls.SetLimit(atOnce)
	for i := range n {
		calls.Go(func() error { return f(i) })
	}
	return calls.Wait()
}

// raw is one client of etcd and a lease per registration.
type raw struct {
	client *clientv3.Client
	leases []clientv3.LeaseID
	drains sync.WaitGroup
}

func newRaw(endpoint string, size int) (*raw, error) {
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		return nil, err
	}
	return &raw{client: client, leases: make([]clientv3.LeaseID, size)}, nil
}

func (r *raw) register(i int) error {
	ctx := context.Background()
	lease, err := r.client.Grant(ctx, ttl)
	if err != nil {
		return err
	}
	r.leases[i] = lease.ID
	if _, err := r.client.Put(ctx, fmt.Sprintf("%s/%d", key(i), lease.ID), value, clientv3.WithLease(lease.ID)); err != nil {
		return err
	}
	renewed, err := r.client.KeepAlive(ctx, lease.ID)
	if err != nil {
		return err
	}
	r.drains.Go(func() {
		for range renewed { // its answers say nothing new, but it must not fill up
		}
	})
	return nil
}

func (r *raw) stop(atOnce int) error {
	err := each(len(r.leases), atOnce, func(i int) error {
		_, err := r.client.Revoke(context.Background(), r.leases[i])
		return err
	})
	err = errors.Join(err, r.client.Close())
	r.drains.Wait()
	return err
}

// goZero is go-zero's publisher, one per registration.
type goZero struct {
	endpoints  []string
	publishers []*gozero.Publisher
}

func newGoZero(endpoint string, size int) *goZero {
	logx.Disable()
	return &goZero{endpoints: []string{endpoint}, publishers: make([]*gozero.Publisher, size)}
}

func (g *goZero) register(i int) error {
	g.publishers[i] = gozero.NewPublisher(g.endpoints, key(i), value)
	return g.publishers[i].KeepAlive()
}

// stop returns before anything is withdrawn, as Stop does.
func (g *goZero) stop(atOnce int) error {
	return each(len(g.publishers), atOnce, func(i int) error {
		g.publishers[i].Stop()
		return nil
	})
}

// ours is discov's publisher, one per registration.
type ours struct {
	endpoints  []string
	publishers []*discov.Publisher
}

func newOurs(endpoint string, size int) *ours {
	return &ours{endpoints: []string{endpoint}, publishers: make([]*discov.Publisher, size)}
}

func (o *ours) register(i int) error {
	silent := discov.WithLogger(slog.New(slog.DiscardHandler))
	o.publishers[i] = discov.NewPublisher(o.endpoints, key(i), value, silent)
	return o.publishers[i].KeepAlive()
}

func (o *ours) stop(atOnce int) error {
	return each(len(o.publishers), atOnce, func(i int) error {
		return o.publishers[i].StopContext(context.Background())
	})
}
