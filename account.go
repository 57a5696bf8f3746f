package discov

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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A refused password is not tried again for a twentieth of the time for which it has been refused, from refusedLeast to
// refusedMost: each try costs etcd a bcrypt (60 ms), and a mistake that is mended soon is to be noticed soon.
const (
	refusedLeast = 300 * time.Millisecond
	refusedMost  = 10 * time.Second
	refusedShare = 20
)

// loginTimeout bounds an Authenticate. It goes on when those who wait for it have given up: etcd does not stop its bcrypt
// either, so that asking anew would keep an etcd with many logins busy for ever.
const loginTimeout = time.Minute

// login is an etcd user and password.
type login struct {
	user, pass string
}

// account holds the token of a link's user, and gets a new one when etcd wants it, once for all who wait.
//
// When etcd was wiped or restored, a call with a token from before hangs without an error, until raft's index has caught up
// with the token's, which may be never. So a token that is suspect is compared with none.
//
// The client's own way costs a bcrypt per stream and per call that finds its token expired: a thousand Publishers would
// keep etcd busy for a minute after each restart. It also makes clientv3.New fail while etcd is down.
//
// A nil account is that of a link without user and password.
type account struct {
	login
	link *link

	mu      sync.Mutex
	token   *token          // never nil
	checked time.Time       // when the token was compared with none last
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

// newAccount begins with a token of another link's, if there is one.
func newAccount(as login, on *link, text string) *account {
	return &account{login: as, link: on, token: newToken(text), asked: text != ""}
}

// GetRequestMetadata implements gRPC's PerRPCCredentials.
func (a *account) GetRequestMetadata(ctx context.Context, _ ...string) (map[string]string, error) {
	text := a.inUse().text
	if withToken, isQuestion := ctx.Value(question{}).(bool); text == "" || isQuestion && !withToken {
		return nil, nil
	}
	return map[string]string{rpctypes.TokenFieldNameGRPC: text}, nil
}

// RequireTransportSecurity implements gRPC's PerRPCCredentials. Plaintext is the user's choice, as with the client.
func (a *account) RequireTransportSecurity() bool { return false }

// inUse is the token of now.
func (a *account) inUse() *token {
	if a == nil {
		return noToken
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.token
}

// isAsking says whether an Authenticate is under way, which all calls wait for.
func (a *account) isAsking() bool {
	if a == nil {
		return false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.pending != nil
}

// ensure gets the first token.
func (a *account) ensure(ctx context.Context) error {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	asked := a.asked
	a.mu.Unlock()
	if asked {
		return nil
	}
	return a.renew(ctx, nil)
}

// reject drops the token if err says that it is of no use any more, so that the next stream gets another.
func (a *account) reject(used *token, err error) {
	if a == nil || !etcd.IsTokenError(etcd.Plain(err)) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.token == used {
		a.forgetLocked()
	}
}

func (a *account) forgetLocked() {
	a.token, a.asked = noToken, false
}

// intercept gives each unary call a token, and a second try where etcd rejects it.
func (a *account) intercept(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if method == pb.Auth_Authenticate_FullMethodName || method == pb.Auth_AuthStatus_FullMethodName || ctx.Value(question{}) != nil {
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	select {
	case <-a.link.dialled:
	case <-ctx.Done(): // a request of the client's own
		return ctx.Err()
	}
	if err := a.ensure(ctx); err != nil {
		return err
	}
	used := a.inUse()
	err := a.unlessItHangs(ctx, used, func(ctx context.Context) error {
		return invoke(ctx, method, req, reply, cc, opts...)
	})
	if !etcd.IsTokenError(etcd.Plain(err)) && !errors.Is(err, errTokenHangs) {
		return err
	}
	if renewErr := a.renew(ctx, used); renewErr != nil {
		return renewErr
	}
	err = invoke(ctx, method, req, reply, cc, opts...)
	if etcd.IsTokenError(etcd.Plain(err)) {
		// In other words, or the client would try a hundred times more.
		return status.Error(codes.Unauthenticated, "a new token was rejected: "+status.Convert(err).Message())
	}
	return err
}

// renew replaces the token, unless somebody has done so meanwhile. One request serves all who wait.
func (a *account) renew(ctx context.Context, rejected *token) error {
	if err := a.link.awaitConnection(ctx); err != nil {
		return err
	}
	one, err := a.join(rejected)
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
func (a *account) join(rejected *token) (*authentication, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.asked && a.token != rejected:
		return nil, nil
	case a.refused != nil && time.Now().Before(a.again):
		return nil, a.refused
	case a.pending == nil:
		one := &authentication{done: make(chan struct{})}
		a.pending = one
		a.link.streams.Go(func() { a.authenticate(one) })
	}
	return a.pending, nil
}

func (a *account) authenticate(one *authentication) {
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(a.link.left), loginTimeout)
	defer cancel()
	auth := pb.NewAuthClient(a.link.client.ActiveConnection())
	response, err := auth.Authenticate(ctx, &pb.AuthenticateRequest{Name: a.user, Password: a.pass}, grpc.WaitForReady(true))

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

func (a *account) noteRefusalLocked(err error) {
	now := time.Now()
	if a.refused == nil {
		a.since = now
	}
	a.refused = err
	a.again = now.Add(min(max(refusedLeast, now.Sub(a.since)/refusedShare), refusedMost))
}
