package main

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/resolver"
)

const (
	scheme = "discov"
	// listBound is for one read of the instances.
	listBound = 3 * time.Second
	// listAgain is how long a watch is trusted: on an etcd that came back with other data it stays silent for ever. A
	// large fleet would take half a minute.
	listAgain = 5 * time.Second
	// pause keeps a client from asking an ill etcd without rest.
	pause = time.Second
)

// builder makes resolvers for discov:///KEY: the addresses are the values of the keys under KEY/.
type builder struct {
	etcd *clientv3.Client
}

func (builder) Scheme() string { return scheme }

func (b builder) Build(target resolver.Target, conn resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	ctx, cancel := context.WithCancel(context.Background())
	r := &instances{etcd: b.etcd, prefix: target.Endpoint() + "/", conn: conn, cancel: cancel, done: make(chan struct{})}
	go r.follow(ctx)
	return r, nil
}

// instances keeps a connection's addresses equal to what etcd has. When etcd is away, the last known ones stay.
type instances struct {
	etcd   *clientv3.Client
	prefix string
	conn   resolver.ClientConn
	cancel context.CancelFunc
	done   chan struct{} // closed when follow has ended
}

// ResolveNow does nothing: the watch tells sooner.
func (*instances) ResolveNow(resolver.ResolveNowOptions) {}

func (r *instances) Close() {
	r.cancel()
	<-r.done
}

// follow reads and watches, and starts over whenever the watch ends, for whatever reason.
func (r *instances) follow(ctx context.Context) {
	defer close(r.done)
	for ctx.Err() == nil {
		addresses, revision, err := r.list(ctx)
		if err == nil {
			r.publish(addresses)
			err = r.watch(ctx, addresses, revision+1)
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		r.conn.ReportError(err)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// list returns the address of each key, and the revision at which that was so.
func (r *instances) list(ctx context.Context) (map[string]string, int64, error) {
	ctx, cancel := context.WithTimeout(ctx, listBound)
	defer cancel()
	response, err := r.etcd.Get(ctx, r.prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, 0, err
	}
	addresses := map[string]string{}
	for _, kv := range response.Kvs {
		addresses[string(kv.Key)] = string(kv.Value)
	}
	return addresses, response.Header.Revision, nil
}

// watch publishes each change from revision on. It returns nil when it is time to list again.
func (r *instances) watch(ctx context.Context, addresses map[string]string, revision int64) error {
	again, cancel := context.WithTimeout(ctx, listAgain)
	defer cancel()
	watch := r.etcd.Watch(clientv3.WithRequireLeader(again), r.prefix, clientv3.WithPrefix(), clientv3.WithRev(revision))
	for response := range watch {
		if err := response.Err(); err != nil {
			return err
		}
		for _, event := range response.Events {
			if event.Type == clientv3.EventTypeDelete {
				delete(addresses, string(event.Kv.Key))
			} else {
				addresses[string(event.Kv.Key)] = string(event.Kv.Value)
			}
		}
		r.publish(addresses)
	}
	if again.Err() != nil {
		return nil
	}
	return errors.New("the watch ended")
}

// publish hands each address over once: two keys may have the same.
func (r *instances) publish(addresses map[string]string) {
	var state resolver.State
	for _, address := range slices.Compact(slices.Sorted(maps.Values(addresses))) {
		state.Addresses = append(state.Addresses, resolver.Address{Addr: address})
	}
	_ = r.conn.UpdateState(state) // it fails when there is no instance; the next change is told all the same
}
