package auth

import (
	"context"
	"errors"
	"sync"

	"github.com/discov-go/discov/internal/etcd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// DialOptions returns what makes a connection use the account.
func (a *Account) DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithPerRPCCredentials(a),
		grpc.WithChainUnaryInterceptor(a.interceptUnary),
		grpc.WithChainStreamInterceptor(a.interceptStream),
	}
}

// interceptUnary gives each call a token, and a second try where etcd rejects it.
func (a *Account) interceptUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if method == pb.Auth_Authenticate_FullMethodName || method == pb.Auth_AuthStatus_FullMethodName || ctx.Value(question{}) != nil {
		return invoke(ctx, method, req, reply, cc, opts...)
	}
	if err := a.ensure(ctx, cc); err != nil {
		return err
	}
	used := a.inUse()
	a.lookBack(cc, used)
	err := a.unlessItHangs(ctx, cc, used, func(ctx context.Context) error {
		return invoke(ctx, method, req, reply, cc, opts...)
	})
	if !etcd.IsTokenError(etcd.Plain(err)) && !errors.Is(err, errTokenHangs) {
		return err
	}
	if renewErr := a.renew(ctx, cc, used); renewErr != nil {
		return renewErr
	}
	err = invoke(ctx, method, req, reply, cc, opts...)
	if etcd.IsTokenError(etcd.Plain(err)) {
		// In other words, or the client would try a hundred times more.
		return status.Error(codes.Unauthenticated, "a new token was rejected: "+status.Convert(err).Message())
	}
	return err
}

// interceptStream gives each stream a token, and ends it when the token is of no use any more.
func (a *Account) interceptStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if err := a.ensure(ctx, cc); err != nil {
		return nil, err
	}
	used := a.inUse()
	a.lookBack(cc, used)
	ctx, cancel := context.WithCancelCause(ctx)
	stopHanging := context.AfterFunc(used.hangs, func() { cancel(errTokenHangs) })
	context.AfterFunc(ctx, func() { stopHanging() }) // or the token would hold the stream for as long as it lives
	stream, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		cancel(nil)
		a.reject(used, err)
		return nil, err
	}
	return &accountStream{ClientStream: stream, account: a, cc: cc, used: used, ctx: ctx, cancel: cancel}, nil
}

// accountStream is a stream of an account.
type accountStream struct {
	grpc.ClientStream
	account *Account
	cc      *grpc.ClientConn
	used    *token
	ctx     context.Context
	cancel  context.CancelCauseFunc

	mu       sync.Mutex
	answered func() // ends the suspicion that what was sent since the last answer has none for its token; nil where there is none
}

// SendMsg implements grpc.ClientStream.
func (s *accountStream) SendMsg(m any) error {
	s.mu.Lock()
	if s.answered == nil {
		s.answered = s.account.suspect(s.ctx, s.cc, s.used)
	}
	s.mu.Unlock()
	return s.ClientStream.SendMsg(m)
}

// RecvMsg implements grpc.ClientStream. Where etcd refuses a watch for its token, the stream ends: it would refuse all.
func (s *accountStream) RecvMsg(m any) error {
	err := s.ClientStream.RecvMsg(m)
	s.mu.Lock()
	answered := s.answered
	s.answered = nil
	s.mu.Unlock()
	if answered != nil {
		answered()
	}
	if watch, ok := m.(*pb.WatchResponse); err == nil && ok && watch.GetCreated() && watch.GetCanceled() {
		if reason := etcd.CancelReason(watch); etcd.IsTokenError(reason) {
			err = reason
		}
	}
	if err != nil {
		if s.ctx.Err() == nil && !etcd.IsDenied(etcd.Plain(err)) { // it was lost
			s.used.doubtful.Store(true)
		}
		s.account.reject(s.used, err)
		s.cancel(nil)
	}
	return err
}
