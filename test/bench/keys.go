package main

import (
	"context"
	"errors"
	"slices"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// keys are the registered keys as a watch sees them.
type keys struct {
	live     map[string]bool
	revision int64 // up to which live is right
	events   clientv3.WatchChan
}

// watchKeys watches until ctx is done.
func watchKeys(ctx context.Context, client *clientv3.Client) (*keys, error) {
	now, err := client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil {
		return nil, err
	}
	k := &keys{live: map[string]bool{}, revision: now.Header.Revision}
	for _, kv := range now.Kvs {
		k.live[string(kv.Key)] = true
	}
	k.events = client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(k.revision+1))
	return k, nil
}

// until follows the events until there are n keys at a revision of at least since.
func (k *keys) until(ctx context.Context, n int, since int64) error {
	for len(k.live) != n || k.revision < since {
		news, ok := <-k.events
		if !ok {
			return ctx.Err()
		}
		if err := news.Err(); err != nil {
			return err
		}
		k.apply(news)
	}
	return nil
}

func (k *keys) apply(news clientv3.WatchResponse) {
	for _, e := range news.Events {
		if e.Type == clientv3.EventTypeDelete {
			delete(k.live, string(e.Kv.Key))
		} else {
			k.live[string(e.Kv.Key)] = true
		}
		k.revision = e.Kv.ModRevision
	}
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
