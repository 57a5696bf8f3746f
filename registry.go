package discov

import (
	"context"
	"crypto/tls"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// probeTimeout bounds one question to a connection in doubt.
	probeTimeout = 2 * time.Second
	// acquittal is how long a connection that answered is not put in doubt again.
	acquittal = 2 * time.Second
	// headStart is how much later than its spare a connection in doubt that is not silent may answer and be kept: to move
	// costs all that is under way, which an etcd with too much to do cannot afford. A silent one has as long as the spare's
	// answer took, if that is less.
	headStart = 500 * time.Millisecond
	// loginHeadStart is how many times as long as its spare's answer a connection may take that has a login under way, which
	// would have to be made again: an etcd with many logins is slow for everybody.
	loginHeadStart = 4
	// lookEvery is how often a connection in doubt is looked at for answers to others than its examiner.
	lookEvery = 250 * time.Millisecond
)

// connections are those of the process.
var connections = &registry{conns: map[identity]*conn{}}

// registry shares one connection among all Publishers with the same endpoints and credentials.
type registry struct {
	mu    sync.Mutex
	conns map[identity]*conn
}

// identity is what makes two Publishers share a connection. Functions and TLS configurations cannot be compared, so the
// same one must have been given to both.
type identity struct {
	endpoints string // sorted
	account   login
	files     tlsFiles
	tls       *tls.Config
	tune      *clientTuning
	client    *clientv3.Client
}

// target is what a connection is dialled with. Nobody writes it.
type target struct {
	endpoints []string // sorted, ours
	account   *login
	files     *tlsFiles
	tls       *tls.Config
	tune      *clientTuning
	client    *clientv3.Client
}

func newTarget(endpoints []string, o options) *target {
	if o.client != nil {
		return &target{client: o.client}
	}
	sorted := slices.Compact(slices.Sorted(slices.Values(endpoints)))
	return &target{endpoints: sorted, account: o.account, files: o.files, tls: o.tls, tune: o.tune}
}

func (t *target) identity() identity {
	id := identity{endpoints: strings.Join(t.endpoints, "\n"), tls: t.tls, tune: t.tune, client: t.client}
	if t.account != nil {
		id.account = *t.account
	}
	if t.files != nil {
		id.files = *t.files
	}
	return id
}

// acquire returns the connection to the target, dialled once for all who ask at the same time. Each acquire that returns
// no error wants a release.
func (r *registry) acquire(to *target) (*conn, error) {
	id := to.identity()
	r.mu.Lock()
	c := r.conns[id]
	if c == nil {
		c = newConn(to)
		r.conns[id] = c
	}
	c.users++
	r.mu.Unlock()

	c.dialOnce.Do(c.open)
	if c.openErr != nil {
		r.release(c)
		return nil, c.openErr
	}
	return c, nil
}

// release gives a connection back; the last one closes it. The calls of the one who releases must have ended.
func (r *registry) release(c *conn) {
	r.mu.Lock()
	c.users--
	last := c.users == 0
	if id := c.to.identity(); last && r.conns[id] == c {
		delete(r.conns, id)
	}
	r.mu.Unlock()
	if last {
		c.close()
	}
}

// conn is a connection to etcd that outlives its links: one that stalls is replaced under its users.
type conn struct {
	to    *target
	users int // guarded by the registry's mu

	dialOnce sync.Once
	openErr  error // written in dialOnce

	quota *quota // of its Publishers' logs

	ctx    context.Context // done when the conn is closed
	cancel context.CancelFunc

	mu        sync.Mutex
	cur       *link     // never nil once opened
	examining bool      // whether cur is in doubt
	acquitted time.Time // when cur was last found well

	running sync.WaitGroup // examinations and links on their way out
}

func newConn(to *target) *conn {
	c := &conn{to: to, quota: newQuota()}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	return c
}

// open makes the first link.
func (c *conn) open() {
	if c.to.client != nil {
		c.cur = borrow(c.to.client)
		return
	}
	c.cur, c.openErr = dial(c.to, false, "")
}

func (c *conn) close() {
	c.mu.Lock() // so that no examination begins after
	c.cancel()
	c.mu.Unlock()
	c.running.Wait()
	if c.cur != nil {
		c.cur.close()
	}
}

// enter takes the link of now for a call.
func (c *conn) enter() *link {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cur.calls.Add(1)
	return c.cur
}

// connected says whether the link of now has a connection.
func (c *conn) connected() bool {
	l := c.enter()
	defer l.calls.Done()
	return l.connected()
}

// do makes a request over the link of now. When etcd is silent for the link's patience, the link is put in doubt; when
// the conn moves on to another link, the request is made again there.
func (c *conn) do(ctx context.Context, patience func(*link) time.Duration, request func(context.Context, *link) error) error {
	for {
		l := c.enter()
		err := c.doOn(ctx, l, patience(l), request)
		moved := l.left.Err() != nil
		l.calls.Done()
		if err == nil || !moved || ctx.Err() != nil {
			return err
		}
	}
}

func (c *conn) doOn(ctx context.Context, l *link, patience time.Duration, request func(context.Context, *link) error) error {
	if l.closedByCaller() {
		return etcd.ErrClientClosed
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.left, cancel)()
	defer context.AfterFunc(l.client.Ctx(), cancel)()
	began := time.Now()
	every(ctx, patience, func() bool {
		// With several members, one that is silent may hide behind the answers of the others.
		return (l.silentSince(began) || len(c.to.endpoints) > 1) && c.suspect(l)
	})
	err := request(ctx, l)
	switch {
	case err != nil && l.closedByCaller():
		return etcd.ErrClientClosed
	case isMute(err) && l.left.Err() == nil && !l.connected():
		return l.trouble(err)
	}
	return err
}

// isMute says whether an error tells that there was no answer, but not why.
func isMute(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, etcd.ErrStreamEnded)
}

// every runs f each time that d has passed, until ctx is done. Each time that f says that all is done, d is doubled.
func every(ctx context.Context, d time.Duration, f func() (done bool)) {
	timer := time.AfterFunc(d, func() {
		if ctx.Err() != nil {
			return
		}
		if f() {
			d *= 2
		}
		every(ctx, d, f)
	})
	context.AfterFunc(ctx, func() { timer.Stop() })
}

// watch asks for a watch on the link of now. It ends when the conn moves on.
func (c *conn) watch(key string, rev int64) *etcd.Watcher {
	l := c.enter()
	defer l.calls.Done()
	if l.closedByCaller() {
		w := etcd.NewWatcher(func() {})
		w.End(etcd.ErrClientClosed)
		return w
	}
	return l.watches.watch(key, rev)
}

// suspect begins an examination of the link, unless there is one. It says no where there was one just now.
func (c *conn) suspect(l *link) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.cur != l || !l.ours || c.examining || c.ctx.Err() != nil:
		return true
	case time.Since(c.acquitted) < acquittal:
		return false
	}
	c.examining = true
	if l.connected() {
		l.silence.begin()
	}
	c.running.Go(func() {
		defer l.silence.end()
		c.examine(l)
	})
	return true
}

// examine finds out whether etcd or the connection is at fault. The link is given two spares, a patient and a brisk one,
// and all are asked until one answers, for as long as an outage may last. If it is a spare, it takes over.
func (c *conn) examine(l *link) {
	token := l.account.inUse().text
	ctx, cancel := context.WithCancel(c.ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	well := make(chan struct{})
	asking.Go(func() {
		if l.ask(ctx, len(c.to.endpoints)) {
			close(well)
		}
	})
	for again := backoff.New(); c.ctx.Err() == nil; again.Wait(c.ctx) {
		patient, err := dial(c.to, false, token)
		if err != nil {
			break // bad files or tuning; the link in doubt may still recover
		}
		brisk, err := dial(c.to, true, token)
		if err != nil {
			patient.close()
			break
		}
		if c.settle(l, well, []*link{patient, brisk}) {
			return
		}
		l.silence.end() // nobody listens for an answer until there are other spares
	}
	c.acquit()
}

func (c *conn) acquit() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.examining = false
	c.acquitted = time.Now()
}

// settle asks the spares until one of them or the link is found well, and says no where a spare has stalled as well.
func (c *conn) settle(l *link, well <-chan struct{}, spares []*link) bool {
	ctx, cancel := context.WithCancel(c.ctx)
	var asking sync.WaitGroup
	answered := make(chan sound, len(spares))
	stalled := make(chan struct{}, len(spares))
	for _, spare := range spares {
		asking.Go(func() {
			if took, ok := spare.askWithin(ctx, probeTimeout); ok {
				answered <- sound{spare, took}
			} else {
				stalled <- struct{}{}
			}
		})
	}
	winner := c.firstToAnswer(l, well, answered, stalled)
	cancel()
	asking.Wait()
	for _, spare := range spares {
		if spare != winner {
			spare.close()
		}
	}
	switch winner {
	case nil:
		return false
	case l:
		c.acquit()
	default:
		c.moveTo(winner)
	}
	return true
}

// sound is a spare that was answered, and how long that took.
type sound struct {
	spare *link
	took  time.Duration
}

// firstToAnswer waits for the winner, nil where there is none.
func (c *conn) firstToAnswer(l *link, well <-chan struct{}, answered <-chan sound, stalled <-chan struct{}) *link {
	began := time.Now()
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		select {
		case <-well:
			return l
		case one := <-answered:
			switch {
			case l.account.isAsking() && l.connected():
				return c.afterHeadStart(l, well, one.spare, max(headStart, loginHeadStart*one.took))
			case !l.silentSince(began):
				return c.afterHeadStart(l, well, one.spare, headStart)
			default:
				return c.afterHeadStart(l, well, one.spare, min(headStart, one.took))
			}
		case <-stalled:
			return nil
		case <-c.ctx.Done():
			return nil
		case <-look.C:
			// Any answer to anybody will do where there is but one member to answer.
			if len(c.to.endpoints) == 1 && !l.silentSince(began) {
				return l
			}
			if !l.connected() {
				l.silence.end()
			}
		}
	}
}

// afterHeadStart gives the link in doubt its head start.
func (c *conn) afterHeadStart(l *link, well <-chan struct{}, spare *link, start time.Duration) *link {
	late := time.NewTimer(start)
	defer late.Stop()
	select {
	case <-well:
		return l
	case <-late.C:
		return spare
	case <-c.ctx.Done():
		return spare
	}
}

// moveTo makes the spare the link of now. Calls on the old one end and are made again on the spare, watchers end.
func (c *conn) moveTo(spare *link) {
	c.mu.Lock()
	old := c.cur
	spare.noteRoundTrip(time.Duration(old.roundTrip.Load()))
	c.cur, c.examining = spare, false
	c.mu.Unlock()
	old.leave()
	c.running.Go(old.close)
}
