package etcdtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A Target is what an Observer can watch: a Server, a Process, a Cluster, a ProcessCluster, or Endpoints.
type Target interface {
	newClient() (*clientv3.Client, error)
	past() past
}

// Endpoints is a Target without TLS and without auth.
type Endpoints []string

func (e Endpoints) newClient() (*clientv3.Client, error) { return clientv3.New(clientConfig(e)) }

func (e Endpoints) past() past { return past{} }

const (
	pollInterval = 50 * time.Millisecond
	pollTimeout  = time.Second
	// pollLimit is how many keys a poll compares one by one; of more, it compares the number.
	pollLimit = 1000
)

// An Observer remembers what happens to the keys under a prefix. It watches on a connection of its own, straight to
// etcd, and starts again with a list of the keys whenever the watch ends or etcd no longer agrees with what it knows.
//
// Time in which etcd can't be reached is not an absence: the observer learns at its end what has happened, and takes
// that for the time of it. What comes and goes between a break of the watch and the list may be missed after a
// compaction, a wipe or a restore only; a wipe itself is noticed within 50 ms of etcd's return.
type Observer struct {
	target Target
	prefix string

	mu       sync.Mutex
	past     past // of the target, in this session
	keys     map[string]KV
	changes  []Change
	revision int64            // everything up to here is known
	moved    chan struct{}    // closed and replaced when any of these changes
	client   *clientv3.Client // nil between sessions
	session  context.Context  // ends with the client
}

// Observe observes the keys under prefix until the end of the test. It returns when the first list is there. If the test
// fails, it logs all that happened.
func Observe(t testing.TB, target Target, prefix string) *Observer {
	t.Helper()
	o := &Observer{target: target, prefix: prefix, keys: map[string]KV{}, moved: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	listed, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		first := sync.OnceFunc(func() { close(listed) })
		for ctx.Err() == nil {
			o.observe(ctx, first)
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if t.Failed() {
			t.Logf("timeline of %q:\n%s", prefix, o.Timeline())
		}
	})
	select {
	case <-listed:
	case <-time.After(startTimeout):
		t.Fatalf("etcdtest: observe %q: etcd does not answer", prefix)
	}
	return o
}

// observe lists, then watches, and returns when it has to be done anew.
func (o *Observer) observe(ctx context.Context, listed func()) {
	c, err := o.target.newClient()
	if err != nil {
		return
	}
	defer c.Close()
	past := o.target.past() // before the list: a wipe in between only means another list
	list, err := get(ctx, c, o.prefix, clientv3.WithPrefix())
	if err != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	o.relist(ctx, past, list, c)
	listed()
	defer func() {
		o.mu.Lock()
		o.client = nil
		o.mu.Unlock()
	}()

	watch := c.Watch(ctx, o.prefix, clientv3.WithPrefix(), clientv3.WithRev(list.Header.Revision+1))
	var beside sync.WaitGroup
	defer beside.Wait()
	defer cancel()
	beside.Go(func() {
		defer cancel()
		o.poll(ctx, c)
	})
	beside.Go(func() {
		defer cancel()
		o.awaitAnother(ctx, past)
	})
	for resp := range watch {
		if resp.Err() != nil {
			break
		}
		if !o.learn(resp) {
			break
		}
	}
}

// awaitAnother waits until the target has another past. Then the session's token is of no use: a read with it would hang.
func (o *Observer) awaitAnother(ctx context.Context, past past) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for o.target.past() == past {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// poll compares what etcd says with what is known, and returns when they differ for a reason that the watch won't mend:
// where etcd has gone back behind what was known when it was asked, or the watch tells nothing for a while.
func (o *Observer) poll(ctx context.Context, c *clientv3.Client) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	differ := 0
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		_, _, known, _ := o.current()
		resp, err := get(ctx, c, o.prefix, clientv3.WithPrefix(), clientv3.WithLimit(pollLimit))
		if err != nil {
			continue // a restart keeps the session: the watch resumes where it was
		}
		if resp.Header.Revision < known {
			return
		}
		o.mu.Lock()
		moved := o.revision != known
		same := o.sameLocked(resp)
		o.mu.Unlock()
		if moved || same {
			differ = 0
			continue
		}
		if differ++; differ >= 10 {
			return
		}
	}
}

func (o *Observer) sameLocked(resp *clientv3.GetResponse) bool {
	if int(resp.Count) != len(o.keys) {
		return false
	}
	for _, kv := range resp.Kvs {
		if known, ok := o.keys[string(kv.Key)]; !ok || known.Changed != kv.ModRevision {
			return false
		}
	}
	return true
}

// relist takes a list of all keys for the truth, and records what it did not know of.
func (o *Observer) relist(session context.Context, past past, list *clientv3.GetResponse, c *clientv3.Client) {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	keys := map[string]KV{}
	for _, kv := range list.Kvs {
		keys[string(kv.Key)] = KV{string(kv.Value), kv.Lease, kv.CreateRevision, kv.ModRevision}
	}
	wiped := past.wipes != o.past.wipes
	for _, key := range slices.Sorted(maps.Keys(o.keys)) {
		// A key that was created anew had gone in between.
		if kv, ok := keys[key]; wiped || !ok || kv.Created != o.keys[key].Created {
			o.changes = append(o.changes, Change{Time: now, Key: key, Gone: true, KV: o.keys[key], Listed: true})
			delete(o.keys, key)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if keys[key] != o.keys[key] {
			o.changes = append(o.changes, Change{Time: now, Revision: keys[key].Changed, Key: key, KV: keys[key], Listed: true})
		}
	}
	o.past, o.keys, o.revision = past, keys, list.Header.Revision
	o.client, o.session = c, session
	o.movedLocked()
}

// learn takes what the watch tells, and refuses what it tells of data that are not those of the list.
func (o *Observer) learn(resp clientv3.WatchResponse) bool {
	now := time.Now()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.past != o.target.past() {
		return false
	}
	for _, ev := range resp.Events {
		key := string(ev.Kv.Key)
		c := Change{Time: now, Revision: ev.Kv.ModRevision, Key: key}
		if ev.Type == clientv3.EventTypeDelete {
			c.Gone, c.KV = true, o.keys[key]
			delete(o.keys, key)
		} else {
			c.KV = KV{string(ev.Kv.Value), ev.Kv.Lease, ev.Kv.CreateRevision, ev.Kv.ModRevision}
			o.keys[key] = c.KV
		}
		o.changes = append(o.changes, c)
		o.revision = max(o.revision, ev.Kv.ModRevision)
	}
	if resp.IsProgressNotify() {
		o.revision = max(o.revision, resp.Header.Revision)
	}
	o.movedLocked()
	return true
}

func (o *Observer) movedLocked() {
	close(o.moved)
	o.moved = make(chan struct{})
}

// get is a read with a deadline.
func get(ctx context.Context, c *clientv3.Client, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	return c.Get(ctx, key, opts...)
}

// current returns the session's client, and a context that ends with it: a call on a client that is closed hangs. The
// client is nil between sessions, and while the session is one with data that are no more.
func (o *Observer) current() (c *clientv3.Client, session context.Context, revision int64, moved <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.past == o.target.past() {
		c = o.client
	}
	return c, o.session, o.revision, o.moved
}

// catchUp waits until the observer knows all that etcd knew when it was called. While etcd is away it gives up after a
// second: then what is known is all that can be known.
func (o *Observer) catchUp() {
	end := time.After(pollTimeout)
	target := int64(-1)
	for {
		c, session, revision, moved := o.current()
		if c != nil && target < 0 {
			if resp, err := get(session, c, o.prefix, clientv3.WithCountOnly()); err == nil {
				target = resp.Header.Revision
			}
		}
		if c != nil && target >= 0 {
			if revision >= target {
				return
			}
			c.RequestProgress(session)
		}
		select {
		case <-moved:
		case <-time.After(20 * time.Millisecond): // a watcher that is behind does not answer
		case <-end:
			return
		}
	}
}

// Keys returns the keys under the prefix as etcd has them now, by a linearizable read. It waits for up to 30 s for etcd
// to answer.
func (o *Observer) Keys(t testing.TB) map[string]KV {
	t.Helper()
	resp := o.read(t, o.prefix, clientv3.WithPrefix())
	keys := map[string]KV{}
	for _, kv := range resp.Kvs {
		keys[string(kv.Key)] = KV{string(kv.Value), kv.Lease, kv.CreateRevision, kv.ModRevision}
	}
	return keys
}

// KV returns the key as etcd has it now, like Keys.
func (o *Observer) KV(t testing.TB, key string) (KV, bool) {
	t.Helper()
	resp := o.read(t, key)
	if len(resp.Kvs) == 0 {
		return KV{}, false
	}
	kv := resp.Kvs[0]
	return KV{string(kv.Value), kv.Lease, kv.CreateRevision, kv.ModRevision}, true
}

// Present reports whether etcd has the key now, like Keys.
func (o *Observer) Present(t testing.TB, key string) bool {
	t.Helper()
	_, ok := o.KV(t, key)
	return ok
}

func (o *Observer) read(t testing.TB, key string, opts ...clientv3.OpOption) *clientv3.GetResponse {
	t.Helper()
	err := errors.New("no connection")
	for deadline := time.Now().Add(startTimeout); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		c, session, _, _ := o.current()
		if c == nil {
			continue
		}
		var resp *clientv3.GetResponse
		if resp, err = get(session, c, key, opts...); err == nil {
			return resp
		}
	}
	t.Fatalf("etcdtest: read %q: %v", key, err)
	return nil
}

// Timeline is what happened to every key, a line each, for people.
func (o *Observer) Timeline() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var b strings.Builder
	for _, c := range o.changes {
		fmt.Fprintln(&b, c)
	}
	return b.String()
}
