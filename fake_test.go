package discov

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/bubble"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// fakeCall is a caller's bound of one request, at the default timeout.
const fakeCall = defaultTimeout / 2

// fakeEtcd is an etcd in memory, for virtual time: leases end on time, watches tell at once, and any call can be made
// slow, lost, or lost after it was applied.
type fakeEtcd struct {
	t testing.TB

	mu       sync.Mutex
	rev      int64
	high     int64 // the latest that an answer has told
	keys     map[string]etcd.Entry
	leases   map[clientv3.LeaseID]*fakeLease
	beats    map[*etcd.Keepalive]context.CancelFunc // of leases that are kept alive
	watches  map[*fakeWatch]struct{}
	calls    []fakeRequest
	up       chan struct{} // closed while etcd answers
	broken   chan struct{} // closed and replaced when connections break
	trouble  func(op string) trouble
	releases int
	tooLarge string // a value that is refused
}

type fakeLease struct {
	ttl   time.Duration
	timer *time.Timer
}

type fakeWatch struct {
	of *fakeEtcd
	etcd.Watcher
	key  string
	now  etcd.Entry      // as it was told last
	ctx  context.Context // done when nobody watches any more
	over context.CancelFunc
}

type fakeRequest struct {
	at time.Time
	op string
}

// trouble is what becomes of one call.
type trouble struct {
	delay  time.Duration
	before error // the call is lost
	after  error // the answer is lost
}

var (
	errReset   = errors.New("connection reset")
	errRefused = errors.New("connection refused")
)

// troubles are what becomes of calls by their kind.
type troubles map[string]trouble

func (t troubles) of(op string) trouble { return t[op] }

// inBubble runs a test against a fake in virtual time.
func inBubble(t *testing.T, test func(*testing.T, *fakeEtcd)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) { test(t, newFakeEtcd(t)) })
}

func newFakeEtcd(t testing.TB) *fakeEtcd {
	f := &fakeEtcd{
		t:       t,
		rev:     1,
		keys:    map[string]etcd.Entry{},
		leases:  map[clientv3.LeaseID]*fakeLease{},
		beats:   map[*etcd.Keepalive]context.CancelFunc{},
		watches: map[*fakeWatch]struct{}{},
		up:      make(chan struct{}),
		broken:  make(chan struct{}),
		trouble: troubles{}.of,
	}
	close(f.up)
	return f
}

// publisher returns a Publisher on the fake without a log, whose every change of state is checked at the end of the test.
func (f *fakeEtcd) publisher(opts ...PubOption) *Publisher {
	events := &EventLog{}
	p := NewPublisher([]string{"fake:2379"}, "user.rpc", "v0", append([]PubOption{Quiet, WithObserver(events.Observe)}, opts...)...)
	f.t.Cleanup(func() {
		synctest.Wait()
		events.requireDrawn(f.t)
	})
	p.connect = func(_, _ context.Context) (connected, error) {
		return connected{first: f, usual: f, release: f.release}, nil
	}
	return p
}

func (f *fakeEtcd) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.releases++
}

// released is how often it was released.
func (f *fakeEtcd) released() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.releases
}

// published is a publisher that is registered.
func (f *fakeEtcd) published(opts ...PubOption) *Publisher {
	f.t.Helper()
	p := f.publisher(opts...)
	require.NoError(f.t, p.KeepAlive())
	return p
}

// meets says what becomes of each call from now on.
func (f *fakeEtcd) meets(trouble func(op string) trouble) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.trouble = trouble
}

// heal ends the trouble of every call.
func (f *fakeEtcd) heal() { f.meets(troubles{}.of) }

// down makes every call hang to its deadline, and ends the watches.
func (f *fakeEtcd) down() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.downLocked()
}

func (f *fakeEtcd) downLocked() {
	f.up = make(chan struct{})
	f.endWatchesLocked()
}

func (f *fakeEtcd) back() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.up)
}

func (f *fakeEtcd) endWatchesLocked() {
	close(f.broken)
	f.broken = make(chan struct{})
	for w := range f.watches {
		w.End(etcd.ErrStreamEnded)
		delete(f.watches, w)
		w.over()
	}
}

// fakeAuditEvery is how often a key that is watched is read.
const fakeAuditEvery = 30 * time.Second

// audit reads the key now and then, as a connection does.
func (f *fakeEtcd) audit(w *fakeWatch) {
	go func() {
		for backoff.Pause(w.ctx, backoff.Jitter(fakeAuditEvery)) {
			now, rev, err := f.Get(w.ctx, w.key)
			f.mu.Lock()
			switch {
			case etcd.IsDenied(err):
				w.End(err)
			case err == nil && w.now.Rev != now.Rev:
				w.now = now
				w.Found(now, rev)
			}
			f.mu.Unlock()
		}
	}()
}

// wipe forgets everything, as an etcd whose data is gone.
func (f *fakeEtcd) wipe() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.leases {
		l.timer.Stop()
	}
	clear(f.keys)
	clear(f.leases)
	f.rev = 1
	f.endWatchesLocked()
}

// set writes the key as another client would.
func (f *fakeEtcd) set(key, value string, id clientv3.LeaseID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.setLocked(key, value, id)
}

func (f *fakeEtcd) setLocked(key, value string, id clientv3.LeaseID) {
	f.rev++
	f.keys[key] = etcd.Entry{Value: value, Lease: id, Rev: f.rev}
	f.tellLocked(key)
}

func (f *fakeEtcd) remove(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removeLocked(key)
}

func (f *fakeEtcd) removeLocked(key string) {
	if _, ok := f.keys[key]; !ok {
		return
	}
	f.rev++
	delete(f.keys, key)
	f.tellLocked(key)
}

func (f *fakeEtcd) tellLocked(key string) {
	for w := range f.watches {
		if w.key == key {
			w.now = f.keys[key]
			w.Tell(w.now, f.rev)
		}
	}
}

// lend makes a lease of another instance's.
func (f *fakeEtcd) lend(id clientv3.LeaseID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leases[id] = &fakeLease{ttl: time.Hour, timer: time.AfterFunc(24*time.Hour, func() { f.expire(id) })}
}

func (f *fakeEtcd) expire(id clientv3.LeaseID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endLocked(id)
}

func (f *fakeEtcd) endLocked(id clientv3.LeaseID) {
	if l := f.leases[id]; l != nil {
		l.timer.Stop()
	}
	delete(f.leases, id)
	for key, e := range f.keys {
		if e.Lease == id {
			f.removeLocked(key)
		}
	}
}

func (f *fakeEtcd) at(key string) etcd.Entry {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keys[key]
}

func (f *fakeEtcd) leaseIDs() []clientv3.LeaseID {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []clientv3.LeaseID
	for id := range f.leases {
		ids = append(ids, id)
	}
	return ids
}

// requests returns when each request of the kind was made.
func (f *fakeEtcd) requests(op string) []time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	var times []time.Time
	for _, c := range f.calls {
		if c.op == op {
			times = append(times, c.at)
		}
	}
	return times
}

// do makes a call meet its trouble.
func (f *fakeEtcd) do(ctx context.Context, op string, apply func() error) error {
	return f.doUnless(ctx, op, func() bool { return false }, apply)
}

// doUnless makes a call meet its trouble, unless it is outdated when there is a connection to send it on.
func (f *fakeEtcd) doUnless(ctx context.Context, op string, outdated func() bool, apply func() error) error {
	return f.doWithin(ctx, op, fakeCall, outdated, apply)
}

func (f *fakeEtcd) doWithin(ctx context.Context, op string, d time.Duration, outdated func() bool, apply func() error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	f.mu.Lock()
	f.calls = append(f.calls, fakeRequest{time.Now(), op})
	meets := f.trouble(op)
	up := f.up
	f.mu.Unlock()
	select {
	case <-up:
	case <-ctx.Done():
		return &etcd.UnsentError{Err: ctx.Err()}
	}
	if outdated() {
		return etcd.ErrOutdated
	}
	if meets.delay > 0 {
		select {
		case <-time.After(meets.delay):
		case <-ctx.Done():
			if rand.N(2) == 0 { // the request is under way: it may be applied although nobody waits
				f.mu.Lock()
				_ = apply()
				f.mu.Unlock()
			}
			return ctx.Err()
		}
	}
	if meets.before != nil {
		return meets.before
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := apply(); err != nil {
		return err
	}
	return meets.after
}

func (f *fakeEtcd) Ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, fakeCall)
	defer cancel()
	f.mu.Lock()
	up := f.up
	f.mu.Unlock()
	select {
	case <-up:
		return nil
	case <-ctx.Done():
		return &etcd.UnsentError{Err: ctx.Err()}
	}
}

func (f *fakeEtcd) Reconnected(ctx context.Context) bool {
	f.mu.Lock()
	broken := f.broken
	f.mu.Unlock()
	select {
	case <-broken:
		for ctx.Err() == nil && f.Ready(ctx) != nil {
		}
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

func (f *fakeEtcd) Pause(ctx context.Context, d time.Duration) bool { return backoff.Pause(ctx, d) }

func (f *fakeEtcd) Grant(ctx context.Context, ttl time.Duration, next func() clientv3.LeaseID) (*etcd.Keepalive, []clientv3.LeaseID, error) {
	id := next()
	asked := time.Now()
	err := f.do(ctx, "grant", func() error {
		if ttl < time.Second || ttl%time.Second != 0 {
			f.t.Errorf("a grant for %v", ttl)
		}
		if f.leases[id] != nil {
			f.t.Errorf("lease %d is granted twice", id)
		}
		l := &fakeLease{ttl: ttl}
		l.timer = time.AfterFunc(l.ttl, func() { f.expire(id) })
		f.leases[id] = l
		return nil
	})
	switch {
	case err == nil:
		return etcd.NewKeepalive(id, ttl, asked), nil, nil
	case etcd.IsRefusal(err), etcd.IsUnsent(err):
		return nil, nil, err
	default:
		return nil, []clientv3.LeaseID{id}, err
	}
}

// KeepAlive renews at each third of the TTL, and tells of what goes wrong as a connection does: at once where etcd refuses,
// and where it does not answer, once the lease has ended.
func (f *fakeEtcd) KeepAlive(lease *etcd.Keepalive) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.beats[lease] != nil {
		f.t.Errorf("lease %d is kept alive twice", lease.ID)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.beats[lease] = cancel
	go func() {
		for backoff.Pause(ctx, lease.TTL/3) {
			for retry := backoff.New(); ctx.Err() == nil; retry.Wait(ctx) {
				err := f.renew(ctx, lease, lease.TTL)
				if err == nil {
					break
				}
				if etcd.IsEtcdError(err) && ctx.Err() == nil {
					lease.Fail(err)
					break
				}
				lease.Expire(err)
			}
		}
	}()
}

func (f *fakeEtcd) LetGo(lease *etcd.Keepalive) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.beats[lease] == nil {
		f.t.Errorf("lease %d is not kept alive", lease.ID)
		return
	}
	f.beats[lease]()
	delete(f.beats, lease)
}

func (f *fakeEtcd) Renew(ctx context.Context, lease *etcd.Keepalive) error {
	return f.renew(ctx, lease, fakeCall)
}

func (f *fakeEtcd) renew(ctx context.Context, lease *etcd.Keepalive, within time.Duration) error {
	var sent time.Time
	err := f.doWithin(ctx, "renew", within, func() bool { sent = time.Now(); lease.Sent(); return false }, func() error {
		l := f.leases[lease.ID]
		if l == nil {
			return rpctypes.ErrLeaseNotFound
		}
		l.timer.Reset(l.ttl)
		f.noteRevLocked()
		return nil
	})
	if err == nil {
		lease.Renewed(sent, time.Now(), lease.TTL)
	} else {
		lease.Unheard()
	}
	return err
}

// noteRevLocked tells all leases where the revision went back, as a connection does.
func (f *fakeEtcd) noteRevLocked() {
	if f.rev < f.high {
		for lease := range f.beats {
			lease.WentBack()
		}
	}
	f.high = f.rev
}

func (f *fakeEtcd) Revoke(ctx context.Context, id clientv3.LeaseID) error {
	return f.do(ctx, "revoke", func() error {
		f.endLocked(id)
		return nil
	})
}

func (f *fakeEtcd) Get(ctx context.Context, key string) (now etcd.Entry, rev int64, err error) {
	err = f.do(ctx, "get", func() error {
		now, rev = f.keys[key], f.rev
		f.high = f.rev
		return nil
	})
	return now, rev, err
}

func (f *fakeEtcd) Leases(ctx context.Context, key string, whole bool) (ids []clientv3.LeaseID, err error) {
	err = f.do(ctx, "leases", func() error {
		for name, one := range f.keys {
			if one.Lease != clientv3.NoLease && (name == key || !whole && strings.HasPrefix(name, key)) {
				ids = append(ids, one.Lease)
			}
		}
		return nil
	})
	return ids, err
}

func (f *fakeEtcd) Put(ctx context.Context, what etcd.Write) (rev int64, err error) {
	err = f.doUnless(ctx, "put", what.Outdated, func() error {
		err := f.writeLocked(what)
		rev = f.rev
		return err
	})
	return rev, err
}

func (f *fakeEtcd) PutOver(ctx context.Context, was etcd.Entry, what etcd.Write) (put bool, now etcd.Entry, rev int64, err error) {
	err = f.doUnless(ctx, "put", what.Outdated, func() error {
		now, rev = f.keys[what.Key], f.rev
		if now.Rev != was.Rev {
			return nil
		}
		err := f.writeLocked(what)
		put, rev = err == nil, f.rev
		return err
	})
	return put, now, rev, err
}

func (f *fakeEtcd) writeLocked(what etcd.Write) error {
	switch {
	case what.Value == f.tooLarge:
		return rpctypes.ErrRequestTooLarge
	case f.leases[what.Lease] == nil:
		return rpctypes.ErrLeaseNotFound
	}
	f.setLocked(what.Key, what.Value, what.Lease)
	f.high = f.rev
	return nil
}

func (f *fakeEtcd) Watch(key string, now etcd.Entry, rev int64, bell etcd.Bell) *etcd.Watcher {
	f.mu.Lock()
	defer f.mu.Unlock()
	w := &fakeWatch{of: f, key: key, now: now, Watcher: etcd.Watcher{Bell: bell}}
	w.Source = w
	w.ctx, w.over = context.WithCancel(context.Background())
	select {
	case <-f.up:
	default:
		w.over()
		w.End(etcd.ErrStreamEnded)
		return &w.Watcher
	}
	f.watches[w] = struct{}{}
	f.audit(w)
	if now := f.keys[key]; now.Rev > rev || !now.Exists() && f.rev > rev {
		w.Tell(now, f.rev)
	}
	return &w.Watcher
}

// Cancel implements the Source of a Watcher.
func (w *fakeWatch) Cancel() {
	w.of.mu.Lock()
	defer w.of.mu.Unlock()
	delete(w.of.watches, w)
	w.over()
}

func (f *fakeEtcd) String() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprintf("keys %v, %d leases, %d watches", f.keys, len(f.leases), len(f.watches))
}

// connectedTo is what a Publisher connects to where that is a store of the test's own.
func connectedTo(on store) connected {
	return connected{first: on, usual: on, release: func() {}}
}
