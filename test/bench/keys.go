package main

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// keys are the registered keys as a watch sees them. It is read all the time: what has waited to be read would be taken for
// late.
type keys struct {
	mu       sync.Mutex
	live     map[string]bool
	revision int64 // up to which live is right
	err      error // why there is no more to come
	moved    chan struct{}
}

// watchKeys watches until ctx is done.
func watchKeys(ctx context.Context, client *clientv3.Client) (*keys, error) {
	now, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, err
	}
	k := &keys{live: map[string]bool{}, revision: now.Header.Revision, moved: make(chan struct{})}
	for _, kv := range now.Kvs {
		k.live[string(kv.Key)] = true
	}
	go func() {
		for news := range client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(k.revision+1)) {
			k.apply(news)
		}
		k.end()
	}()
	return k, nil
}

// until waits until there are n keys at a revision of at least since.
func (k *keys) until(ctx context.Context, n int, since int64) error {
	for {
		k.mu.Lock()
		there, err, moved := len(k.live) == n && k.revision >= since, k.err, k.moved
		k.mu.Unlock()
		switch {
		case there:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		}
		select {
		case <-moved:
		case <-ctx.Done():
		}
	}
}

func (k *keys) apply(news clientv3.WatchResponse) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, e := range news.Events {
		if e.Type == clientv3.EventTypeDelete {
			delete(k.live, string(e.Kv.Key))
		} else {
			k.live[string(e.Kv.Key)] = true
		}
		k.revision = e.Kv.ModRevision
	}
	k.err = news.Err()
	k.moveLocked()
}

func (k *keys) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err = cmp.Or(k.err, errors.New("the watch of the keys has ended"))
	k.moveLocked()
}

func (k *keys) moveLocked() {
	close(k.moved)
	k.moved = make(chan struct{})
}

// revokeAll revokes all leases that there are, and returns the revision after the last of them.
func revokeAll(ctx context.Context, client *clientv3.Client, atOnce int) (int64, error) {
	all, err := client.Leases(ctx)
	if err != nil {
		return 0, err
	}
	revisions := make([]int64, len(all.Leases))
	err = each(len(all.Leases), atOnce, func(i int) error {
		revoked, err := client.Revoke(ctx, all.Leases[i].ID)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return nil // its owner was quicker
		}
		if err == nil {
			revisions[i] = revoked.Header.Revision
		}
		return err
	})
	return slices.Max(append(revisions, 0)), err
}
