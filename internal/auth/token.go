package auth

import (
	"context"
	"sync/atomic"

	"github.com/discov-go/discov/internal/etcd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// token is what etcd knows a user by.
type token struct {
	text  string
	hangs context.Context // done when it is found to hang
	drop  context.CancelFunc
	// doubtful is whether it is to be found out that etcd was not wiped or restored: a stream with it was lost, or it is
	// another connection's.
	doubtful atomic.Bool
}

// noToken is that of a call without one, which never hangs.
var noToken = &token{hangs: context.Background()}

func newToken(text string) *token {
	if text == "" {
		return noToken
	}
	t := &token{text: text}
	t.hangs, t.drop = context.WithCancel(context.Background())
	return t
}

// question is the key, in a context, of a call that finds out about the token or the connection. Its value tells whether it
// is made with the token.
type question struct{}

// WithoutToken returns a context for calls that are made without a token, and wait for no login: it is the connection that
// is in question.
func WithoutToken(ctx context.Context) context.Context {
	return context.WithValue(ctx, question{}, false)
}

// IsAnswered asks a member something that it answers by itself, and reports whether it has. Any answer will do.
func IsAnswered(ctx context.Context, cc grpc.ClientConnInterface) bool {
	request := &pb.RangeRequest{Key: []byte("discov"), CountOnly: true, Serializable: true}
	_, err := pb.NewKVClient(cc).Range(ctx, request, grpc.WaitForReady(true))
	return err == nil || etcd.IsEtcdError(etcd.Plain(err))
}
