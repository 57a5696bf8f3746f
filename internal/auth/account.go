// Package auth proves to etcd who its client is: with an account and its token, and with TLS certificates. It gives both to
// gRPC as dial options, so that who makes a request need not know of them.
package auth

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/etcd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// A Login is an etcd user and password. The zero Login is none.
type Login struct {
	User, Pass string
}

// An Account holds the token of a user on one connection, and gets a new one when etcd wants it, once for all who wait.
//
// When etcd was wiped or restored, a call with a token from before hangs without an error, until raft's index has caught up
// with the token's, which may be never. So a token that is suspect is compared with none.
//
// The client's own way costs a bcrypt per stream and per call that finds its token expired: a thousand Publishers would
// keep etcd busy for a minute after each restart. It also makes clientv3.New fail while etcd is down.
//
// A nil Account is that of a connection without user and password. It is safe for concurrent use.
type Account struct {
	login   Login
	on      Connection
	ctx     context.Context // done when the connection is given up
	running sync.WaitGroup  // logins, and looks whether etcd went back

	mu      sync.Mutex
	token   *token          // never nil
	checked time.Time       // when the token was compared with none last
	looking bool            // whether it is being found out whether etcd went back
	asked   bool            // whether etcd has answered an Authenticate
	pending *authentication // nil where none is under way
	refused error
	since   time.Time // of the first refusal in a row
	again   time.Time // when the password may be tried again
}

// authentication is one call to Authenticate. err may be read once done is closed.
type authentication struct {
	done chan struct{}
	err  error
}

// A Connection is what an Account has to know of the connection that it is used on.
type Connection struct {
	Members int    // how many there are to answer
	Token   string // of another connection, to begin with; empty where none is known
	// Ready waits until there is a connection. No login begins before.
	Ready func(context.Context, *grpc.ClientConn) error
	// Late returns after which time an answer is late.
	Late func() time.Duration
	// WentBack asks etcd whether it was wiped or restored, so that its revision is an older one than was known.
	WentBack func(context.Context, *grpc.ClientConn) (bool, error)
}

// New returns an Account for a connection, until ctx is done.
func New(ctx context.Context, as Login, on Connection) *Account {
	a := &Account{ctx: ctx, login: as, on: on, token: noToken}
	if on.Token != "" {
		a.token, a.asked = newToken(on.Token), true
		a.token.doubtful.Store(true)
	}
	return a
}

// Wait waits until all goroutines have ended. The account's context must be done.
func (a *Account) Wait() {
	if a == nil {
		return
	}
	a.inUse() // who had the lock has begun what it would; nobody begins any more
	a.running.Wait()
}

// Token returns the token of now, empty where there is none.
func (a *Account) Token() string { return a.inUse().text }

// GetRequestMetadata implements gRPC's PerRPCCredentials.
func (a *Account) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	text := a.inUse().text
	if withToken, isQuestion := ctx.Value(question{}).(bool); text == "" || isQuestion && !withToken {
		return nil, nil
	}
	return map[string]string{rpctypes.TokenFieldNameGRPC: text}, nil
}

// RequireTransportSecurity implements gRPC's PerRPCCredentials. Plaintext is the user's choice, as with the client.
func (a *Account) RequireTransportSecurity() bool { return false }

// inUse returns the token of now.
func (a *Account) inUse() *token {
	if a == nil {
		return noToken
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.token
}

// IsLoggingIn reports whether an Authenticate is under way, which all calls wait for.
func (a *Account) IsLoggingIn() bool {
	if a == nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pending != nil
}

// ensure gets the first token.
func (a *Account) ensure(ctx context.Context, cc *grpc.ClientConn) error {
	a.mu.Lock()
	asked := a.asked
	a.mu.Unlock()
	if asked {
		return nil
	}
	return a.renew(ctx, cc, nil)
}

// renew replaces the token, unless somebody has done so meanwhile. One request serves all who wait.
func (a *Account) renew(ctx context.Context, cc *grpc.ClientConn, rejected *token) error {
	if err := a.on.Ready(ctx, cc); err != nil {
		return err
	}
	one, err := a.join(cc, rejected)
	if one == nil {
		return err
	}
	select {
	case <-one.done:
		return one.err
	case <-ctx.Done():
		return status.Error(status.FromContextError(ctx.Err()).Code(), "while waiting for authentication")
	}
}

// join returns the authentication that is under way, or starts one. It returns none where there is a newer token already,
// or where etcd has refused the password just now.
func (a *Account) join(cc *grpc.ClientConn, rejected *token) (*authentication, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.asked && a.token != rejected:
		return nil, nil
	case a.refused != nil && time.Now().Before(a.again):
		return nil, a.refused
	case a.pending == nil:
		if a.ctx.Err() != nil {
			return nil, a.ctx.Err()
		}
		one := &authentication{done: make(chan struct{})}
		a.pending = one
		a.running.Go(func() { a.authenticate(cc, one) })
	}
	return a.pending, nil
}

func (a *Account) authenticate(cc *grpc.ClientConn, one *authentication) {
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(a.ctx), loginTimeout)
	defer cancel()
	request := &pb.AuthenticateRequest{Name: a.login.User, Password: a.login.Pass}
	response, err := pb.NewAuthClient(cc).Authenticate(ctx, request, grpc.WaitForReady(true))

	a.mu.Lock()
	defer a.mu.Unlock()
	a.pending = nil
	switch e := etcd.Plain(err); {
	case err == nil:
		a.token, a.asked, a.refused = newToken(response.GetToken()), true, nil
	case errors.Is(e, rpctypes.ErrAuthNotEnabled):
		a.token, a.asked, a.refused = noToken, true, nil
	case etcd.IsFinal(e):
		one.err = err
		a.noteRefusalLocked(err)
	default:
		one.err = err
	}
	close(one.done)
}

func (a *Account) noteRefusalLocked(err error) {
	now := time.Now()
	if a.refused == nil {
		a.since = now
	}
	a.refused = err
	a.again = now.Add(min(max(refusedLeast, now.Sub(a.since)/refusedShare), refusedMost))
}

// reject drops the token if err says that it is of no use any more, so that the next request gets another.
func (a *Account) reject(used *token, err error) {
	if !etcd.IsTokenError(etcd.Plain(err)) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.token == used {
		a.forgetLocked()
	}
}

func (a *Account) forgetLocked() {
	a.token, a.asked = noToken, false
}
