package discov

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
)

// The settings of the library's clients, where gRPC's and the client's own lose registrations.
const (
	// reconnectLeast and reconnectMost bound gRPC's pause between two tries to connect, which grows to two minutes by
	// default: after a long outage the way back would take as long.
	reconnectLeast = 100 * time.Millisecond
	reconnectMost  = time.Second
	// patientConnect and briskConnect bound one try to connect. A brisk link notices within a second that a path
	// which swallowed its first packets has healed; a patient one gets through where a handshake takes seconds. A
	// connection in doubt is given a spare of either kind.
	patientConnect = 20 * time.Second
	briskConnect   = 400 * time.Millisecond
	// briskReconnectMost is a brisk link's own reconnectMost: its tries are paced by their bound already.
	briskReconnectMost = 300 * time.Millisecond
	// pingAfter and pingTimeout notice a dead connection under an idle stream; gRPC raises less than 10 s.
	pingAfter   = 10 * time.Second
	pingTimeout = 3 * time.Second
)

// link is one client, and the streams on it that all Publishers of a connection share.
type link struct {
	client   *clientv3.Client
	kv       pb.KVClient
	leases   pb.LeaseClient
	watch    pb.WatchClient
	account  *account // nil without one
	renewals renewals
	watches  watches

	brisk bool
	ours  bool // the library's, to be closed

	dialled chan struct{}   // closed when there is a client
	left    context.Context // done when nobody is to use the link any more
	leave   context.CancelFunc

	calls   sync.WaitGroup // Add only while the link is its conn's current one, or in a call
	streams sync.WaitGroup

	roundTrip atomic.Int64              // of late, in nanoseconds
	answered  atomic.Pointer[time.Time] // when etcd last answered anything
	overtaken atomic.Pointer[time.Time] // when the last request was made that etcd has answered

	connecting sharedWait
	cause      sharedCause
	silence    silence
}

// sharedWait is one wait for a connection for all who want one: each change of gRPC's state wakes all who wait for it, and
// there are several a second in an outage.
type sharedWait struct {
	mu   sync.Mutex
	over chan struct{} // nil where nobody waits
}

// sharedCause is why there is no connection, found out once for all whose wait for one ends at about the same time.
type sharedCause struct {
	mu    sync.Mutex
	err   error // nil where there was a connection after all
	since time.Time
}

// sharedCauseFor is how long a cause is not found out anew.
const sharedCauseFor = 100 * time.Millisecond

// silence is while a link is connected and in doubt, and nobody has an answer: what is sent then is given up again.
type silence struct {
	mu   sync.Mutex
	over chan struct{} // nil where there is none
}

func (s *silence) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over == nil {
		s.over = make(chan struct{})
	}
}

func (s *silence) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over != nil {
		close(s.over)
		s.over = nil
	}
}

// now is closed when the silence of now is over, and nil where there is none.
func (s *silence) now() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.over
}

// wait waits until there is none.
func (s *silence) wait(ctx context.Context) error {
	over := s.now()
	if over == nil {
		return nil
	}
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return etcd.Because(ctx.Err(), etcd.ErrSilent.Error())
	}
}

func newLink() *link {
	l := &link{dialled: make(chan struct{})}
	l.left, l.leave = context.WithCancel(context.Background())
	l.renewals.link, l.watches.link = l, l
	return l
}

// dial makes a link of the library's own, with a token if one is known. It does not wait for the connection.
func dial(to *target, brisk bool, token string) (*link, error) {
	l := newLink()
	l.brisk, l.ours = brisk, true
	config, err := l.config(to, token)
	if err == nil {
		l.client, err = clientv3.New(config)
	}
	if err != nil {
		l.leave()
		return nil, fmt.Errorf("discov: make a client for %v: %w", to.endpoints, err)
	}
	l.attach(l.client)
	return l, nil
}

// borrow makes a link of the caller's client.
func borrow(client *clientv3.Client) *link {
	l := newLink()
	l.client = client
	l.attach(client)
	return l
}

func (l *link) attach(client *clientv3.Client) {
	// Not the client's own, which try again up to a hundred times, 25 ms apart, while there is no leader.
	l.kv = pb.NewKVClient(client.ActiveConnection())
	l.leases = pb.NewLeaseClient(client.ActiveConnection())
	l.watch = pb.NewWatchClient(client.ActiveConnection())
	close(l.dialled)
}

// config is what the client is made with: our settings, the user's tuning, and then what we do in the client's place.
func (l *link) config(to *target, token string) (clientv3.Config, error) {
	config := l.settings(to)
	ofTarget := config.TLS
	if to.tune != nil {
		if err := to.tune.run(&config); err != nil {
			return config, err
		}
	}
	load := func() (*tls.Config, error) { return config.TLS, nil }
	if to.files != nil && config.TLS == ofTarget {
		load = to.files.load
	}
	takeLimits(&config)
	l.takeTLS(&config, load)
	err := l.takeAccount(&config, token)
	return config, err
}

func (l *link) settings(to *target) clientv3.Config {
	connect := grpc.ConnectParams{
		Backoff:           grpcbackoff.Config{BaseDelay: reconnectLeast, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectMost},
		MinConnectTimeout: patientConnect,
	}
	if l.brisk {
		connect.MinConnectTimeout = briskConnect
		connect.Backoff.MaxDelay = briskReconnectMost
	}
	config := clientv3.Config{
		Endpoints:            slices.Clone(to.endpoints),
		TLS:                  to.tls.Clone(),
		DialKeepAliveTime:    pingAfter,
		DialKeepAliveTimeout: pingTimeout,
		Logger:               zap.NewNop(),
		DialOptions:          []grpc.DialOption{grpc.WithConnectParams(connect)},
	}
	if to.files != nil {
		config.TLS = &tls.Config{MinVersion: tls.VersionTLS12} // stands for the files
	}
	if to.account != nil {
		config.Username, config.Password = to.account.user, to.account.pass
	}
	return config
}

// takeLimits makes the client's limits of a message those of the connection: our calls are not the client's.
func takeLimits(config *clientv3.Config) {
	limits := []grpc.CallOption{grpc.MaxCallRecvMsgSize(math.MaxInt32)} // the client's default
	if n := config.MaxCallRecvMsgSize; n > 0 {
		limits = append(limits, grpc.MaxCallRecvMsgSize(n))
	}
	if n := config.MaxCallSendMsgSize; n > 0 {
		limits = append(limits, grpc.MaxCallSendMsgSize(n))
	}
	config.DialOptions = append([]grpc.DialOption{grpc.WithDefaultCallOptions(limits...)}, config.DialOptions...)
}

// takeTLS takes the handshakes out of the client's hands into ours.
func (l *link) takeTLS(config *clientv3.Config, load func() (*tls.Config, error)) {
	if config.TLS == nil && !slices.ContainsFunc(config.Endpoints, isSecure) {
		return
	}
	ours := grpc.WithTransportCredentials(newTransportTLS(load))
	config.DialOptions = append([]grpc.DialOption{ours}, config.DialOptions...) // the tuning's own come after it
}

// takeAccount takes the account out of the client's hands into ours.
func (l *link) takeAccount(config *clientv3.Config, token string) error {
	if config.Username == "" || config.Password == "" {
		return nil
	}
	if config.RejectOldCluster {
		return fmt.Errorf("%w: RejectOldCluster with an account: the client would ask before it can log in", ErrOptions)
	}
	l.account = newAccount(login{user: config.Username, pass: config.Password}, l, token)
	config.Username, config.Password = "", ""
	config.DialOptions = append(config.DialOptions,
		grpc.WithPerRPCCredentials(l.account), grpc.WithChainUnaryInterceptor(l.account.intercept))
	return nil
}

// close ends the streams, and the client if it is the library's. All calls must have been told to end.
func (l *link) close() {
	l.leave()
	l.calls.Wait()
	l.streams.Wait()
	if l.ours {
		_ = l.client.Close() // says only that its context is done, which is so
	}
}

// outlast is ctx with its deadline, but not cancelled with it: only by a time later, or when the link is left.
func (l *link) outlast(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	deadline, _ := ctx.Deadline()
	longer, cancel := context.WithDeadline(context.WithoutCancel(ctx), deadline)
	stopLeft := context.AfterFunc(l.left, cancel)
	stopLate := context.AfterFunc(ctx, func() { time.AfterFunc(by, cancel) })
	return longer, func() { stopLeft(); stopLate(); cancel() }
}

// closedByCaller says whether the caller has closed a client that was given with WithClient. A call on it would take
// 2.5 s to fail.
func (l *link) closedByCaller() bool {
	return !l.ours && l.client.Ctx().Err() != nil
}

// connected says whether gRPC has a connection.
func (l *link) connected() bool {
	return l.client.ActiveConnection().GetState() == connectivity.Ready
}

// slowRoundTrip is what a round trip should not take.
func (l *link) slowRoundTrip() time.Duration {
	return 3 * time.Duration(l.roundTrip.Load()) / 2
}

// noteRoundTrip takes a longer round trip at once and forgets it slowly.
func (l *link) noteRoundTrip(d time.Duration) {
	if was := time.Duration(l.roundTrip.Load()); d < was {
		d = (7*was + d) / 8
	}
	l.roundTrip.Store(int64(d))
}

// noteAnswer takes an answer to anybody, which ends a silence.
func (l *link) noteAnswer() {
	now := time.Now()
	l.answered.Store(&now)
	l.silence.end()
}

// noteOvertaken takes when a request was made that etcd has answered.
func (l *link) noteOvertaken(began time.Time) {
	for last := l.overtaken.Load(); last == nil || last.Before(began); last = l.overtaken.Load() {
		if l.overtaken.CompareAndSwap(last, &began) {
			return
		}
	}
}

// isQueue says whether etcd goes on answering, but nothing that was made later than a request by half of d: then the
// request waits for its turn, and to make it again would only make the queue longer. It goes on where it has answered
// within d.
func (l *link) isQueue(began time.Time, d time.Duration) bool {
	overtaken := l.overtaken.Load()
	isInOrder := overtaken == nil || overtaken.Before(began.Add(d/2))
	return isInOrder && !l.silentSince(began) && !l.silentSince(time.Now().Add(-d))
}

// silentSince says whether etcd has answered nothing over the link since.
func (l *link) silentSince(since time.Time) bool {
	answered := l.answered.Load()
	return answered == nil || answered.Before(since)
}

// awaitConnection waits until gRPC has a connection. Its error is gRPC's own, which names the cause.
func (l *link) awaitConnection(ctx context.Context) error {
	if l.connected() {
		return nil
	}
	select {
	case <-l.connection():
		if l.closedByCaller() {
			return etcd.ErrClientClosed
		}
		return l.left.Err()
	case <-ctx.Done():
		return l.trouble(status.FromContextError(ctx.Err()).Err())
	}
}

// reconnected waits until gRPC has lost its connection, if it has one, and has one again.
func (l *link) reconnected(ctx context.Context) error {
	l.client.ActiveConnection().WaitForStateChange(ctx, connectivity.Ready)
	return l.awaitConnection(ctx)
}

// connection is closed when gRPC has a connection, or can have none any more.
func (l *link) connection() <-chan struct{} {
	wait := &l.connecting
	wait.mu.Lock()
	defer wait.mu.Unlock()
	if wait.over == nil {
		wait.over = make(chan struct{})
		l.streams.Go(l.connect)
	}
	return wait.over
}

func (l *link) connect() {
	cc := l.client.ActiveConnection()
	for state := cc.GetState(); state != connectivity.Ready && state != connectivity.Shutdown; state = cc.GetState() {
		cc.Connect()
		if !cc.WaitForStateChange(l.left, state) {
			break
		}
	}
	wait := &l.connecting
	wait.mu.Lock()
	defer wait.mu.Unlock()
	close(wait.over)
	wait.over = nil
}

// trouble is why there is no connection, in gRPC's words. Where there is one after all, it is err.
func (l *link) trouble(err error) error {
	shared := &l.cause
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if time.Since(shared.since) > sharedCauseFor {
		shared.err, shared.since = l.whyNotConnected(), time.Now()
	}
	if shared.err != nil {
		return shared.err
	}
	return err
}

// whyNotConnected asks gRPC, with a request that has no time to be sent.
func (l *link) whyNotConnected() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	auth := pb.NewAuthClient(l.client.ActiveConnection())
	_, err := auth.AuthStatus(ctx, &pb.AuthStatusRequest{}, grpc.WaitForReady(true))
	if status.Code(err) == codes.DeadlineExceeded {
		return err
	}
	return nil
}

// isAnswered asks a member something that it answers by itself. Any answer will do.
func isAnswered(ctx context.Context, kv pb.KVClient) bool {
	_, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("discov"), CountOnly: true, Serializable: true}, grpc.WaitForReady(true))
	return err == nil || etcd.IsEtcdError(etcd.Plain(err))
}

// ask asks etcd n things at once, so that the balancer asks each member that it is connected to, again and again until all
// are answered: it is the connection that is in question. So it is asked without a token, and needs no login. It says no
// when ctx is done.
func (l *link) ask(ctx context.Context, n int) bool {
	ctx = context.WithValue(ctx, question{}, false)
	for again := backoff.New(); ctx.Err() == nil; again.Wait(ctx) {
		if l.probe(ctx, n) {
			return true
		}
	}
	return false
}

// askWithin asks one thing as soon as there is a connection, and returns how long the answer took. It says no where that is
// longer than d, or when ctx is done.
func (l *link) askWithin(ctx context.Context, d time.Duration) (took time.Duration, answered bool) {
	if l.awaitConnection(ctx) != nil {
		return 0, false
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	began := time.Now()
	answered = l.ask(ctx, 1)
	return time.Since(began), answered
}

// probe says whether all of n questions were answered.
func (l *link) probe(ctx context.Context, n int) bool {
	answers := make(chan bool, n)
	for range n {
		go func() {
			answered := isAnswered(ctx, l.kv)
			if answered {
				l.silence.end() // one of several members is not silent
			}
			answers <- answered
		}()
	}
	all := true
	for range n {
		all = <-answers && all
	}
	return all
}

// A session is one Publisher's use of a connection, with its deadlines.
type session struct {
	conn *conn
	// call bounds one request.
	call time.Duration
	// patience is how long etcd may be silent until the connection is in doubt, and maxPatience how long where round
	// trips are slow: half of call, so that there is time left on another connection.
	patience, maxPatience time.Duration
	// misses counts the requests and the waits for a connection that were in vain, since the last wait that was not.
	misses atomic.Int32
}

// askAgain is how long a request has no answer at least until it is made again.
const askAgain = time.Second

// longestWait bounds a wait for a connection, which costs nothing and ends as soon as there is one.
const longestWait = 20 * time.Second

var _ store = (*session)(nil)

// wholeBound marks a context in which a request may take all the time that there is: over a slow network, a first
// registration has none for a second try.
type wholeBound struct{}

// do makes one request within d, over the next link where the conn moves on meanwhile.
func (s *session) do(ctx context.Context, d time.Duration, request func(context.Context, *link) error) error {
	ctx = clientv3.WithRequireLeader(ctx)
	if ctx.Value(wholeBound{}) != nil {
		return etcd.Plain(s.conn.do(ctx, s.patienceOn, request))
	}
	if err := s.connect(ctx); err != nil {
		return err
	}
	_, err := s.within(ctx, d, func(ctx context.Context) error {
		return etcd.Plain(s.conn.do(ctx, s.patienceOn, request))
	})
	return err
}

// within bounds what there is to wait for, and counts it where it was in vain: not where ctx was done.
func (s *session) within(ctx context.Context, d time.Duration, wait func(context.Context) error) (vain bool, err error) {
	bound, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	err = wait(bound)
	if vain = err != nil && errors.Is(bound.Err(), context.DeadlineExceeded) && ctx.Err() == nil; vain {
		s.misses.Add(1)
	}
	return vain, err
}

// ask makes one request, and makes it again while there is no answer for longer than there should be one: a leader that
// dies takes along what was sent to it, and etcd tells of that after 7 s. Where one member cannot answer, the next is asked
// at once: the balancer takes turns, so that a repair of two requests would meet the same two members each time.
func ask[T any](ctx context.Context, s *session, request func(context.Context, *link) (T, error)) (answer T, err error) {
	return askWithin(ctx, s, s.call, func(ctx context.Context, l *link) (T, error) {
		began, connected := time.Now(), l.connected()
		answer, err := request(ctx, l)
		if err == nil && connected {
			l.noteRoundTrip(time.Since(began))
		}
		return answer, err
	})
}

// askWithin is ask with a bound of its own, for a request that notes its round trip.
func askWithin[T any](ctx context.Context, s *session, d time.Duration, request func(context.Context, *link) (T, error)) (answer T, err error) {
	err = s.do(ctx, d, func(ctx context.Context, l *link) (err error) {
		again := max(askAgain, l.slowRoundTrip())
		answer, err = firstAnswer(ctx, l, again, request)
		if etcd.IsOfOneMember(err) && ctx.Err() == nil && len(l.client.Endpoints()) > 1 && l.connected() {
			answer, err = firstAnswer(ctx, l, again, request)
		}
		return err
	})
	return answer, err
}

// firstAnswer makes a request, and makes it again when again has passed, twice again, four times again and so on, unless
// it seems to wait for its turn. It returns what is answered first.
func firstAnswer[T any](ctx context.Context, l *link, again time.Duration, request func(context.Context, *link) (T, error)) (T, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		answer T
		err    error
	}
	first := make(chan outcome, 1)
	try := func() {
		began := time.Now()
		answer, err := request(ctx, l)
		if err == nil {
			l.noteAnswer()
			l.noteOvertaken(began)
		}
		select {
		case first <- outcome{answer, err}:
		default:
		}
	}
	began := time.Now()
	l.calls.Go(try)
	for passed := time.Duration(0); ; {
		pause := max(again, passed)
		select {
		case one := <-first:
			return one.answer, one.err
		case <-time.After(pause):
			passed += pause
			if ctx.Err() == nil && l.connected() && l.silence.now() == nil && !l.account.isAsking() && !l.isQueue(began, again) {
				l.calls.Go(try)
			}
		}
	}
}

// connect waits until there is a connection.
func (s *session) connect(ctx context.Context) error {
	if s.conn.connected() {
		return nil
	}
	return s.longer(ctx, s.awaitConnection)
}

// longer bounds a wait for a connection: longer and longer while it is in vain.
func (s *session) longer(ctx context.Context, wait func(context.Context) error) error {
	vain, err := s.within(ctx, max(s.call, min(s.call<<min(s.misses.Load(), 10), longestWait)), wait)
	if vain {
		return &etcd.UnsentError{Err: err}
	}
	if err == nil {
		s.misses.Store(0)
	}
	return err
}

func (s *session) awaitConnection(ctx context.Context) error {
	return etcd.Plain(s.conn.do(ctx, s.patienceOn, func(ctx context.Context, l *link) error { return l.awaitConnection(ctx) }))
}

// awaitSound waits for a connection that is not silent.
func (s *session) awaitSound(ctx context.Context) error {
	l := s.conn.enter()
	err := l.silence.wait(ctx)
	l.calls.Done()
	if err != nil || s.conn.connected() {
		return err
	}
	return s.awaitConnection(ctx)
}

// patienceOn stretches the patience where round trips are slow.
func (s *session) patienceOn(l *link) time.Duration {
	return min(max(s.patience, l.slowRoundTrip()), s.maxPatience)
}

func (s *session) Ready(ctx context.Context) error {
	if ctx.Value(wholeBound{}) != nil {
		return s.awaitConnection(ctx)
	}
	return s.longer(ctx, s.awaitSound)
}

func (s *session) Reconnected(ctx context.Context) bool {
	return s.onThisLink(ctx, func(still context.Context, l *link) {
		if err := l.reconnected(still); errors.Is(err, etcd.ErrClientClosed) {
			<-ctx.Done()
		}
	})
}

func (s *session) Pause(ctx context.Context, d time.Duration) bool {
	return s.onThisLink(ctx, func(still context.Context, _ *link) { backoff.Pause(still, d) })
}

// onThisLink waits, at most for as long as the conn stays on its link of now, and says no when ctx is done.
func (s *session) onThisLink(ctx context.Context, wait func(context.Context, *link)) bool {
	l := s.conn.enter()
	defer l.calls.Done()
	still, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.left, cancel)()
	wait(still, l)
	return ctx.Err() == nil
}

func (s *session) Grant(ctx context.Context, ttl int64) (id clientv3.LeaseID, granted int64, strays []clientv3.LeaseID, err error) {
	var tries grantTries
	response, err := ask(ctx, s, func(ctx context.Context, l *link) (*pb.LeaseGrantResponse, error) {
		id, err := tries.next()
		if err != nil {
			return nil, err
		}
		if l.connected() {
			// Bounded, not cancelled: etcd might grant the lease after it was revoked.
			var cancel context.CancelFunc
			ctx, cancel = l.outlast(ctx, s.call)
			defer cancel()
		}
		response, err := l.leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: int64(id), TTL: ttl}, grpc.WaitForReady(true))
		// That its disk is full, etcd may find out once it has granted.
		if e := etcd.Plain(err); etcd.IsRefusal(e) && !errors.Is(e, rpctypes.ErrNoSpace) {
			tries.drop(id)
		}
		return response, err
	})
	id = clientv3.LeaseID(response.GetID())
	tries.drop(id)
	return id, response.GetTTL(), tries.end(), err
}

// grantTries are the lease IDs that a grant has asked for, a new one each time.
type grantTries struct {
	mu    sync.Mutex
	ids   []clientv3.LeaseID
	ended bool
}

// next returns an ID to ask for, unless the grant has returned.
func (t *grantTries) next() (clientv3.LeaseID, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return clientv3.NoLease, context.Canceled
	}
	id := newLeaseID()
	t.ids = append(t.ids, id)
	return id, nil
}

// drop forgets an ID of which etcd has told.
func (t *grantTries) drop(id clientv3.LeaseID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ids = slices.DeleteFunc(t.ids, func(one clientv3.LeaseID) bool { return one == id })
}

// end returns the IDs that are left.
func (t *grantTries) end() []clientv3.LeaseID {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.ended = true
	return slices.Clone(t.ids)
}

func (s *session) Renew(ctx context.Context, id clientv3.LeaseID, alone bool, within time.Duration) (ttl, rev int64, err error) {
	type answer struct{ ttl, rev int64 }
	found, err := askWithin(ctx, s, max(s.call, within), func(ctx context.Context, l *link) (one answer, err error) {
		if alone {
			one.ttl, one.rev, err = l.renewals.renewAlone(ctx, id)
		} else {
			defer l.account.suspect(ctx, l.account.inUse())()
			one.ttl, one.rev, err = l.renewals.renew(ctx, id)
		}
		return one, err
	})
	return found.ttl, found.rev, err
}

func (s *session) Revoke(ctx context.Context, id clientv3.LeaseID) error {
	_, err := ask(ctx, s, func(ctx context.Context, l *link) (*pb.LeaseRevokeResponse, error) {
		return l.leases.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: int64(id)}, grpc.WaitForReady(true))
	})
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return nil
	}
	return err
}

func (s *session) Get(ctx context.Context, key string) (now etcd.Entry, rev int64, err error) {
	response, err := ask(ctx, s, func(ctx context.Context, l *link) (*pb.RangeResponse, error) {
		return l.kv.Range(ctx, rangeOf(key), grpc.WaitForReady(true))
	})
	return firstOf(response), response.GetHeader().GetRevision(), err
}

func (s *session) Put(ctx context.Context, what etcd.Write) (rev int64, err error) {
	response, err := ask(ctx, s, func(ctx context.Context, l *link) (*pb.PutResponse, error) {
		return l.kv.Put(ctx, putOf(what), grpc.WaitForReady(true), whileLatest(what))
	})
	return response.GetHeader().GetRevision(), err
}

func (s *session) PutOver(ctx context.Context, was etcd.Entry, what etcd.Write) (put bool, now etcd.Entry, rev int64, err error) {
	txn := &pb.TxnRequest{
		Compare: []*pb.Compare{{
			Key:         []byte(what.Key),
			Target:      pb.Compare_MOD,
			Result:      pb.Compare_EQUAL,
			TargetUnion: &pb.Compare_ModRevision{ModRevision: was.Rev},
		}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: putOf(what)}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: rangeOf(what.Key)}}},
	}
	response, err := ask(ctx, s, func(ctx context.Context, l *link) (*pb.TxnResponse, error) {
		return l.kv.Txn(ctx, txn, grpc.WaitForReady(true), whileLatest(what))
	})
	if err == nil && !response.GetSucceeded() {
		now = firstOf(response.GetResponses()[0].GetResponseRange())
	}
	return response.GetSucceeded(), now, response.GetHeader().GetRevision(), err
}

func (s *session) Watch(key string, rev int64) *etcd.Watcher {
	return s.conn.watch(key, rev)
}

func rangeOf(key string) *pb.RangeRequest {
	return &pb.RangeRequest{Key: []byte(key)}
}

func putOf(what etcd.Write) *pb.PutRequest {
	return &pb.PutRequest{Key: []byte(what.Key), Value: []byte(what.Value), Lease: int64(what.Lease)}
}

// whileLatest keeps a write from being sent once it is outdated. When the connection is lost, gRPC holds a request back for
// the next one, and asks for credentials just before it sends it.
func whileLatest(what etcd.Write) grpc.CallOption {
	return grpc.PerRPCCredentials(latestOnly(what))
}

type latestOnly etcd.Write

// GetRequestMetadata implements gRPC's PerRPCCredentials.
func (l latestOnly) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if l.Outdated() {
		return nil, etcd.ErrOutdated
	}
	return nil, nil
}

// RequireTransportSecurity implements gRPC's PerRPCCredentials.
func (latestOnly) RequireTransportSecurity() bool { return false }

// firstOf is the one key of a response to rangeOf.
func firstOf(response *pb.RangeResponse) etcd.Entry {
	if len(response.GetKvs()) == 0 {
		return etcd.Entry{}
	}
	return etcd.EntryOf(response.GetKvs()[0])
}

// newLeaseID chooses a lease ID: positive, so that it reads well in a key, and never zero, which is no lease.
func newLeaseID() clientv3.LeaseID {
	return clientv3.LeaseID(rand.Int64N(1<<63-1) + 1) //nolint:gosec // must be unlikely to be taken, not to be guessed
}
