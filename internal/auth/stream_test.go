package auth_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/bubble"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// keepAlive opens a stream of renewals, and makes the first one.
func (c *connection) keepAlive(t *testing.T) pb.Lease_LeaseKeepAliveClient {
	t.Helper()
	stream, err := pb.NewLeaseClient(c.cc).LeaseKeepAlive(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&pb.LeaseKeepAliveRequest{ID: 1}))
	return stream
}

// watch opens a stream of watches, and asks for the first one.
func (c *connection) watch(t *testing.T) pb.Watch_WatchClient {
	t.Helper()
	stream, err := pb.NewWatchClient(c.cc).Watch(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{}}}))
	return stream
}

func TestAStreamGetsAToken(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{bcrypt: time.Second}
		c := connect(t, e, testLogin, "")
		_, err := c.keepAlive(t).Recv()
		require.NoError(t, err)
		_, err = c.watch(t).Recv()
		require.NoError(t, err)
		require.Equal(t, []string{"t1", "t1"}, e.tokens())
		require.Equal(t, 1, e.loggedIn())
	})
}

func TestAStreamThatIsRefusedForItsTokenLetsTheNextHaveAnother(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{answer: onlyNew("t1", rpctypes.ErrGRPCInvalidAuthToken)}
		c := connect(t, e, testLogin, "old")
		one, other := c.keepAlive(t), c.keepAlive(t)
		for _, stream := range []pb.Lease_LeaseKeepAliveClient{one, other} {
			_, err := stream.Recv()
			require.ErrorIs(t, etcd.Plain(err), rpctypes.ErrInvalidAuthToken)
		}
		_, err := c.keepAlive(t).Recv()
		require.NoError(t, err)
		require.Equal(t, 1, e.loggedIn())
	})
}

func TestAStreamThatIsRefusedLateTakesNoNewTokenAway(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{answer: onlyNew("t1", rpctypes.ErrGRPCInvalidAuthToken)}
		c := connect(t, e, testLogin, "old")
		late := c.keepAlive(t)
		require.NoError(t, c.get(t.Context()))
		_, err := late.Recv()
		require.Error(t, err)
		require.Equal(t, "t1", c.Token())
	})
}

func TestAStreamThatEndsForAnotherReasonKeepsItsToken(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{answer: onlyNew("none", rpctypes.ErrGRPCPermissionDenied)}
		c := connect(t, e, testLogin, "good")
		_, err := c.keepAlive(t).Recv()
		require.ErrorIs(t, etcd.Plain(err), rpctypes.ErrPermissionDenied)
		require.Equal(t, "good", c.Token())
	})
}

func TestAWatchThatIsRefusedForItsTokenEndsTheStream(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{answer: onlyNew("t1", rpctypes.ErrGRPCAuthOldRevision)}
		c := connect(t, e, testLogin, "old")
		stream := c.watch(t)
		_, err := stream.Recv()
		require.ErrorIs(t, err, rpctypes.ErrAuthOldRevision)
		<-stream.Context().Done()
		require.Empty(t, c.Token())
		response, err := c.watch(t).Recv()
		require.NoError(t, err)
		require.False(t, response.GetCanceled())
		require.Equal(t, 1, e.loggedIn())
	})
}

func TestAWatchThatIsDeniedLeavesTheStreamToTheOthers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{answer: onlyNew("none", rpctypes.ErrGRPCPermissionDenied)}
		c := connect(t, e, testLogin, "good")
		stream := c.watch(t)
		response, err := stream.Recv()
		require.NoError(t, err)
		require.ErrorIs(t, etcd.CancelReason(response), rpctypes.ErrPermissionDenied)
		require.NoError(t, stream.Context().Err())
		require.Equal(t, "good", c.Token())
	})
}

func TestAStreamWhoseTokenHangsEndsAndTheNextHasAnother(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{hangs: hanging("old")}
		c := connect(t, e, testLogin, "old")
		began := time.Now()
		waiting, idle := c.keepAlive(t), c.watch(t)
		for _, recv := range []func() error{
			func() error { _, err := waiting.Recv(); return err },
			func() error { _, err := idle.Recv(); return err },
		} {
			require.Equal(t, codes.Canceled, status.Code(recv()))
		}
		require.Less(t, time.Since(began), 600*time.Millisecond)
		_, err := c.keepAlive(t).Recv()
		require.NoError(t, err)
		require.Equal(t, []string{"", "t1"}, e.tokens(), "the question without a token, and the stream")
	})
}

func TestAStreamThatWaitsForNoAnswerSuspectsNoToken(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{}
		c := connect(t, e, testLogin, "good")
		stream := c.watch(t)
		_, err := stream.Recv()
		require.NoError(t, err)
		heard := make(chan error, 1)
		go func() {
			_, err := stream.Recv()
			heard <- err
		}()
		time.Sleep(time.Hour)
		require.Empty(t, heard)
		require.Zero(t, e.asked(question))
		require.Len(t, e.tokens(), 1)
	})
}

func TestAStreamThatCannotBeOpenedLeavesNothing(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		c := connect(t, &server{}, testLogin, "good")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := pb.NewLeaseClient(c.cc).LeaseKeepAlive(ctx)
		require.Equal(t, codes.Canceled, status.Code(err))
		synctest.Wait()
		require.Equal(t, "good", c.Token())
	})
}
