package auth_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/auth"
	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/grpctest"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testLogin = auth.Login{User: "u", Pass: "p"}

// server is an etcd with users, or a lying one. It gives the tokens t1, t2 and so on.
type server struct {
	pb.UnimplementedAuthServer
	pb.UnimplementedKVServer
	pb.UnimplementedWatchServer
	pb.UnimplementedLeaseServer

	mu      sync.Mutex
	logins  []time.Time
	bcrypt  time.Duration                // how long a login takes
	refusal error                        // of logins, nil where there is none
	answer  func(token string) error     // to a call that comes with this token; nil where all are good
	hangs   func(token, key string) bool // whether a call with this token, for this key, gets no answer; nil where none does
	delay   time.Duration                // of each answer
	back    bool                         // whether it was restored
	look    func(context.Context) error  // answers to who asks for that; nil where nothing is in the way
	looked  int                          // how often it was asked for that
	calls   []string                     // the tokens of those that were answered
	keys    map[string]int               // how many calls came for each key
}

// set changes the server.
func (e *server) set(change func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change()
}

// Authenticate implements pb.AuthServer.
func (e *server) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	e.mu.Lock()
	e.logins = append(e.logins, time.Now())
	n, bcrypt, refusal := len(e.logins), e.bcrypt, e.refusal
	e.mu.Unlock()
	if !backoff.Pause(ctx, bcrypt) {
		return nil, ctx.Err()
	}
	if refusal != nil {
		return nil, refusal
	}
	if r.GetName() != testLogin.User || r.GetPassword() != testLogin.Pass {
		return nil, rpctypes.ErrGRPCAuthFailed
	}
	return &pb.AuthenticateResponse{Token: fmt.Sprint("t", n)}, nil
}

// Txn implements pb.KVServer. It tells whether etcd was restored.
func (e *server) Txn(ctx context.Context, _ *pb.TxnRequest) (*pb.TxnResponse, error) {
	if token := tokenOf(ctx); token != "" {
		return nil, status.Errorf(codes.InvalidArgument, "a question with the token %s", token)
	}
	e.mu.Lock()
	e.looked++
	look := e.look
	e.mu.Unlock()
	if look != nil {
		if err := look(ctx); err != nil {
			return nil, err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return &pb.TxnResponse{Succeeded: e.back}, nil
}

func wentBack(ctx context.Context, cc *grpc.ClientConn) (bool, error) {
	answer, err := pb.NewKVClient(cc).Txn(ctx, &pb.TxnRequest{}, grpc.WaitForReady(true))
	return answer.GetSucceeded(), err
}

// tokenOf returns the token of a call, empty where it has none.
func tokenOf(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if texts := md.Get(rpctypes.TokenFieldNameGRPC); len(texts) > 0 {
		return texts[0]
	}
	return ""
}

// judge answers to a call as the server does.
func (e *server) judge(ctx context.Context, key string) error {
	token := tokenOf(ctx)
	e.mu.Lock()
	if e.keys == nil {
		e.keys = map[string]int{}
	}
	e.keys[key]++
	answer, hangs, delay := e.answer, e.hangs != nil && e.hangs(token, key), e.delay
	e.mu.Unlock()
	if !backoff.Pause(ctx, delay) {
		return ctx.Err()
	}
	if hangs {
		<-ctx.Done()
		return ctx.Err()
	}
	if answer != nil {
		if err := answer(token); err != nil {
			return err
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.calls = append(e.calls, token)
	return nil
}

// Range implements pb.KVServer.
func (e *server) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	return &pb.RangeResponse{}, e.judge(ctx, string(r.GetKey()))
}

// LeaseKeepAlive implements pb.LeaseServer.
func (e *server) LeaseKeepAlive(stream pb.Lease_LeaseKeepAliveServer) error {
	for {
		r, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := e.judge(stream.Context(), "lease"); err != nil {
			return err
		}
		if err := stream.Send(&pb.LeaseKeepAliveResponse{ID: r.GetID(), TTL: 10}); err != nil {
			return err
		}
	}
}

// Watch implements pb.WatchServer. Like etcd, it refuses a watch, but not the stream.
func (e *server) Watch(stream pb.Watch_WatchServer) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
		response := &pb.WatchResponse{Created: true}
		if err := e.judge(stream.Context(), "watch"); err != nil {
			response.Canceled, response.CancelReason = true, err.Error()
		}
		if err := stream.Send(response); err != nil {
			return err
		}
	}
}

// loggedIn returns how many logins there were.
func (e *server) loggedIn() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.logins)
}

// looks returns how often it was asked for its revision.
func (e *server) looks() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.looked
}

// tokens returns those of the calls that were answered, and forgets them.
func (e *server) tokens() (tokens []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	tokens, e.calls = e.calls, nil
	return tokens
}

// asked returns how many calls came for a key.
func (e *server) asked(key string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.keys[key]
}

// connection is one that an account is used on.
type connection struct {
	*auth.Account
	cc    *grpc.ClientConn
	leave context.CancelFunc
}

// connect makes a connection to the server, which begins with a token if there is one.
func connect(t *testing.T, e *server, as auth.Login, token string) *connection {
	t.Helper()
	return connectOn(t, e, as, auth.Connection{Token: token})
}

// connectOn is connect, with the rest of what an account has to know. The zero Connection is one to a quick member that is
// ready.
func connectOn(t *testing.T, e *server, as auth.Login, on auth.Connection) *connection {
	t.Helper()
	on.Members = max(on.Members, 1)
	if on.Ready == nil {
		on.Ready = func(context.Context, *grpc.ClientConn) error { return nil }
	}
	if on.Late == nil {
		on.Late = func() time.Duration { return time.Millisecond }
	}
	on.WentBack = wentBack
	ctx, leave := context.WithCancel(context.Background())
	account := auth.New(ctx, as, on)
	t.Cleanup(func() {
		leave()
		account.Wait()
	})
	return &connection{account, serve(t, e, account.DialOptions()...), leave}
}

func serve(t *testing.T, e *server, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	return grpctest.Serve(t, 0, func(s *grpc.Server) {
		pb.RegisterAuthServer(s, e)
		pb.RegisterKVServer(s, e)
		pb.RegisterWatchServer(s, e)
		pb.RegisterLeaseServer(s, e)
	}, opts...)
}

// get makes a call.
func (c *connection) get(ctx context.Context) error {
	_, err := pb.NewKVClient(c.cc).Range(ctx, &pb.RangeRequest{Key: []byte("key")})
	return err
}
