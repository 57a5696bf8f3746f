package auth_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/auth"
	"github.com/discov-go/discov/internal/bubble"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// question is the key of the calls that find out about a token.
const question = "discov"

// hanging is an etcd that lets calls with these tokens wait.
func hanging(tokens ...string) func(token, key string) bool {
	return func(token, _ string) bool {
		for _, one := range tokens {
			if one == token {
				return true
			}
		}
		return false
	}
}

func TestATokenThatHangsIsFoundAndReplaced(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{hangs: hanging("old")}
		c := connect(t, e, testLogin, "old")
		done, began := make(chan error, 20), time.Now()
		for range 20 {
			go func() { done <- c.get(t.Context()) }()
		}
		for range 20 {
			require.NoError(t, <-done)
		}
		require.Less(t, time.Since(began), 600*time.Millisecond)
		require.Equal(t, "t1", c.Token())
		require.Equal(t, 1, e.loggedIn())
		require.Equal(t, 2, e.asked(question), "with the token and without, once for all")
	})
}

func TestATokenThatHangsIsFoundOnASlowEtcdToo(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{hangs: hanging("old"), delay: 2 * time.Second}
		c := connect(t, e, testLogin, "old")
		began := time.Now()
		require.NoError(t, c.get(t.Context()))
		require.Less(t, time.Since(began), 6*time.Second)
		require.Equal(t, 1, e.loggedIn())
	})
}

func TestAnEtcdThatIsSlowOrSilentIsNotBlamedOnTheToken(t *testing.T) {
	for name, change := range map[string]func(e *server){
		"slow":                  func(e *server) { e.delay = 3 * time.Second },
		"silent":                func(e *server) { e.hangs = func(string, string) bool { return true } },
		"slow with one key":     func(e *server) { e.hangs = func(_, key string) bool { return key == "key" } },
		"silent without tokens": func(e *server) { e.hangs = func(token, key string) bool { return token == "" || key == "key" } },
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				e := &server{}
				change(e)
				c := connect(t, e, testLogin, "good")
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				for range 10 {
					go func() { _ = c.get(ctx) }()
				}
				<-ctx.Done()
				synctest.Wait()
				require.Equal(t, "good", c.Token())
				require.Zero(t, e.loggedIn())
				require.LessOrEqual(t, e.asked(question), 2*20, "every half a second, for all")
			})
		})
	}
}

func TestAMemberThatIsSilentDoesNotMakeATokenLookBad(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var n atomic.Int64
		e := &server{hangs: func(_, key string) bool { return key == "key" || n.Add(1)%3 == 0 }} // one of three
		c := connectOn(t, e, testLogin, auth.Connection{Members: 3, Token: "good"})
		call, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.Error(t, c.get(call))
		require.Equal(t, "good", c.Token())
		require.Greater(t, e.asked(question), 10)
	})
}

func TestWhatIsAnsweredInTimeMakesNoTokenSuspect(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{delay: 199 * time.Millisecond}
		c := connect(t, e, testLogin, "good")
		for range 20 {
			require.NoError(t, c.get(t.Context()))
		}
		require.Zero(t, e.asked(question))
	})
}

func TestWhatIsAnsweredAsSlowlyAsEverMakesNoTokenSuspect(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{delay: 1500 * time.Millisecond}
		c := connectOn(t, e, testLogin, auth.Connection{Token: "good", Late: func() time.Duration { return 2 * time.Second }})
		for range 20 {
			require.NoError(t, c.get(t.Context()))
		}
		require.Zero(t, e.asked(question))
	})
}

func TestACallWithoutATokenSuspectsNone(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{refusal: rpctypes.ErrGRPCAuthNotEnabled, delay: 5 * time.Second}
		c := connect(t, e, testLogin, "")
		require.NoError(t, c.get(t.Context()))
		require.Zero(t, e.asked(question))
	})
}

// lose ends streams as an etcd does that goes down.
func (e *server) lose(t *testing.T, streams ...pb.Lease_LeaseKeepAliveClient) {
	t.Helper()
	e.set(func() { e.answer = func(string) error { return rpctypes.ErrGRPCStopped } })
	defer e.set(func() { e.answer = nil })
	for _, stream := range streams {
		require.NoError(t, stream.Send(&pb.LeaseKeepAliveRequest{ID: 1}))
		_, err := stream.Recv()
		require.Error(t, err)
	}
}

// renewing returns a stream on which a renewal was answered.
func (c *connection) renewing(t *testing.T) pb.Lease_LeaseKeepAliveClient {
	t.Helper()
	stream := c.keepAlive(t)
	_, err := stream.Recv()
	require.NoError(t, err)
	return stream
}

func TestATokenFromBeforeEtcdWasRestoredIsNotWaitedFor(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{}
		c := connect(t, e, testLogin, "")
		e.lose(t, c.renewing(t))
		sent := make(chan struct{})
		e.set(func() {
			e.back, e.hangs, e.look = true, hanging("t1"), func(context.Context) error { <-sent; return nil }
		})
		next := c.keepAlive(t)
		close(sent)
		began := time.Now()
		require.NoError(t, c.get(t.Context()))
		_, err := next.Recv()
		require.Equal(t, codes.Canceled, status.Code(err))
		require.Zero(t, time.Since(began))
		require.Equal(t, "t2", c.Token())
		require.Equal(t, 1, e.looks())
		require.Equal(t, 2, e.loggedIn())
	})
}

func TestATokenOfAnotherConnectionFromBeforeEtcdWasRestoredIsNotWaitedFor(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{back: true, hangs: hanging("old")}
		c := connect(t, e, testLogin, "old")
		began := time.Now()
		require.NoError(t, c.get(t.Context()))
		require.Zero(t, time.Since(began))
		require.Equal(t, "t1", c.Token())
	})
}

func TestStreamsThatWereLostCostOneLookAtEtcd(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{}
		c := connect(t, e, testLogin, "")
		for _, want := range []int{0, 1, 2} {
			streams := []pb.Lease_LeaseKeepAliveClient{c.renewing(t), c.renewing(t)}
			synctest.Wait()
			require.Equal(t, want, e.looks())
			e.lose(t, streams...)
		}
		require.Equal(t, "t1", c.Token(), "it was not restored")
		require.Equal(t, 1, e.loggedIn())
	})
}

func TestALookAtEtcdThatFailsIsMadeAgain(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{look: func(context.Context) error { return rpctypes.ErrGRPCNoLeader }}
		c := connect(t, e, testLogin, "known")
		for want := range 3 {
			require.NoError(t, c.get(t.Context()))
			synctest.Wait()
			require.Equal(t, want+1, e.looks())
		}
		e.set(func() { e.look = func(context.Context) error { return rpctypes.ErrGRPCUserEmpty } }) // it answers no one who has no token
		for range 3 {
			require.NoError(t, c.get(t.Context()))
			synctest.Wait()
		}
		require.Equal(t, 4, e.looks())
		require.Equal(t, "known", c.Token())
	})
}

func TestOneLookAtEtcdIsUnderWayAtATime(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{look: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }} // it has no answer
		c := connect(t, e, testLogin, "known")
		for range 5 {
			e.lose(t, c.renewing(t), c.renewing(t))
		}
		synctest.Wait()
		require.Equal(t, 1, e.looks())
	})
}

func TestAStreamThatIsDeniedOrNotWantedAnyMoreCostsNoLookAtEtcd(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{}
		c := connect(t, e, testLogin, "")
		ctx, cancel := context.WithCancel(t.Context())
		unwanted, err := pb.NewLeaseClient(c.cc).LeaseKeepAlive(ctx)
		require.NoError(t, err)
		cancel()
		_, err = unwanted.Recv()
		require.Error(t, err)
		denied := c.renewing(t)
		e.set(func() { e.answer = onlyNew("none", rpctypes.ErrGRPCPermissionDenied) })
		require.NoError(t, denied.Send(&pb.LeaseKeepAliveRequest{ID: 1}))
		_, err = denied.Recv()
		require.Error(t, err)
		_ = c.get(t.Context()) // it is denied, too
		synctest.Wait()
		require.Zero(t, e.looks())
	})
}
