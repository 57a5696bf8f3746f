package auth_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/discov-go/discov/internal/auth"
	"github.com/discov-go/discov/internal/bubble"
	"github.com/discov-go/discov/internal/etcd"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestOneLoginServesAllWhoWaitForIt(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{bcrypt: time.Second}
		c := connect(t, e, testLogin, "")
		require.False(t, c.IsLoggingIn())
		done := make(chan error, 50)
		for range 50 {
			go func() { done <- c.get(t.Context()) }()
		}
		synctest.Wait()
		require.True(t, c.IsLoggingIn())
		require.Empty(t, c.Token())
		for range 50 {
			require.NoError(t, <-done)
		}
		require.False(t, c.IsLoggingIn())
		require.Equal(t, "t1", c.Token())
		require.Equal(t, 1, e.loggedIn())
		tokens := e.tokens()
		require.Len(t, tokens, 50)
		for _, token := range tokens {
			require.Equal(t, "t1", token)
		}
	})
}

func TestALoginGoesOnWhenNobodyWaitsForItAnyMore(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{bcrypt: time.Second}
		c := connect(t, e, testLogin, "")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		err := c.get(ctx)
		require.Equal(t, codes.DeadlineExceeded, status.Code(err))
		require.ErrorContains(t, err, "while waiting for authentication")
		require.NoError(t, c.get(t.Context()))
		require.Equal(t, 1, e.loggedIn())
	})
}

func TestALoginThatTakesAMinuteFails(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{bcrypt: time.Hour}
		c := connect(t, e, testLogin, "")
		began := time.Now()
		require.Equal(t, codes.DeadlineExceeded, status.Code(c.get(t.Context())))
		require.Equal(t, time.Minute, time.Since(began))
		e.set(func() { e.bcrypt = 0 })
		require.NoError(t, c.get(t.Context()))
	})
}

func TestALoginThatFailsInPassingIsMadeAgainByTheNext(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{refusal: rpctypes.ErrGRPCNoLeader}
		c := connect(t, e, testLogin, "")
		require.ErrorIs(t, etcd.Plain(c.get(t.Context())), rpctypes.ErrNoLeader)
		e.set(func() { e.refusal = nil })
		require.NoError(t, c.get(t.Context()))
		require.Equal(t, 2, e.loggedIn())
	})
}

func TestATokenOfAnotherConnectionsNeedsNoLogin(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{}
		c := connect(t, e, testLogin, "another's")
		require.NoError(t, c.get(t.Context()))
		require.Equal(t, []string{"another's"}, e.tokens())
		require.Zero(t, e.loggedIn())
	})
}

func TestAnEtcdWithoutAuthNeedsNoToken(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{refusal: rpctypes.ErrGRPCAuthNotEnabled}
		c := connect(t, e, testLogin, "")
		for range 3 {
			require.NoError(t, c.get(t.Context()))
		}
		require.Equal(t, []string{"", "", ""}, e.tokens())
		require.Equal(t, 1, e.loggedIn())
	})
}

// onlyNew is an etcd that rejects all tokens but one.
func onlyNew(good string, err error) func(string) error {
	return func(token string) error {
		if token == good {
			return nil
		}
		return err
	}
}

func TestATokenThatIsRejectedIsReplacedAndTheCallMadeAgain(t *testing.T) {
	for name, rejection := range map[string]error{
		"it is invalid":        rpctypes.ErrGRPCInvalidAuthToken,
		"it is of before":      rpctypes.ErrGRPCAuthOldRevision,
		"auth was switched on": rpctypes.ErrGRPCUserEmpty,
	} {
		t.Run(name, func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) {
				e := &server{bcrypt: 100 * time.Millisecond, answer: onlyNew("t1", rejection)}
				c := connect(t, e, testLogin, "old")
				done := make(chan error, 20)
				for range 20 {
					go func() { done <- c.get(t.Context()) }()
				}
				for range 20 {
					require.NoError(t, <-done)
				}
				require.Equal(t, 1, e.loggedIn(), "once for all")
				require.Equal(t, 40, e.asked("key"))
				require.NoError(t, c.get(t.Context()))
				require.Equal(t, 41, e.asked("key"))
			})
		})
	}
}

func TestANewTokenThatIsRejectedIsToldInOtherWords(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{answer: onlyNew("none", rpctypes.ErrGRPCInvalidAuthToken)}
		c := connect(t, e, testLogin, "old")
		err := c.get(t.Context())
		require.Equal(t, codes.Unauthenticated, status.Code(err))
		require.ErrorContains(t, err, "a new token was rejected")
		require.False(t, etcd.IsTokenError(etcd.Plain(err)), "or the client would try a hundred times more")
		require.Equal(t, 2, e.asked("key"))
		require.Equal(t, 1, e.loggedIn())
	})
}

func TestAnErrorThatATokenCannotMendIsTheCallersOwn(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{answer: onlyNew("none", rpctypes.ErrGRPCPermissionDenied)}
		c := connect(t, e, testLogin, "old")
		require.ErrorIs(t, etcd.Plain(c.get(t.Context())), rpctypes.ErrPermissionDenied)
		require.Equal(t, 1, e.asked("key"))
		require.Zero(t, e.loggedIn())
	})
}

func TestARefusedPasswordIsNotTriedAgainForATwentiethOfTheTimeOfRefusal(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{bcrypt: 60 * time.Millisecond}
		c := connect(t, e, auth.Login{User: "u", Pass: "wrong"}, "")
		for began := time.Now(); time.Since(began) < 10*time.Minute; time.Sleep(10 * time.Millisecond) {
			require.ErrorIs(t, etcd.Plain(c.get(t.Context())), rpctypes.ErrAuthFailed)
		}
		logins := e.logins
		first := logins[0].Add(e.bcrypt) // it was refused
		require.Greater(t, len(logins), 100)
		for i, at := range logins[1:] {
			refused := logins[i].Add(e.bcrypt)
			want := min(max(300*time.Millisecond, refused.Sub(first)/20), 10*time.Second)
			require.GreaterOrEqual(t, at.Sub(refused), want, "try %d", i+1)
			require.LessOrEqual(t, at.Sub(refused), want+50*time.Millisecond, "try %d", i+1)
		}
	})
}

func TestAPasswordThatIsGoodAgainIsNoticedAndForgiven(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{refusal: rpctypes.ErrGRPCAuthFailed}
		c := connect(t, e, testLogin, "")
		require.Error(t, c.get(t.Context()))
		time.Sleep(40 * time.Second)
		require.Error(t, c.get(t.Context()))
		e.set(func() { e.refusal = nil })
		time.Sleep(time.Second)
		require.ErrorIs(t, etcd.Plain(c.get(t.Context())), rpctypes.ErrAuthFailed, "it was refused a second ago")
		time.Sleep(time.Second)
		require.NoError(t, c.get(t.Context()))
		e.set(func() {
			e.answer, e.refusal = onlyNew("t9", rpctypes.ErrGRPCInvalidAuthToken), rpctypes.ErrGRPCAuthFailed
		})
		require.Error(t, c.get(t.Context()))
		time.Sleep(300 * time.Millisecond)
		logins := e.loggedIn()
		require.Error(t, c.get(t.Context()))
		require.Equal(t, logins+1, e.loggedIn(), "the time of refusal counts anew")
	})
}

func TestACallWithoutTokenWaitsForNoLogin(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{bcrypt: time.Minute}
		c := connect(t, e, testLogin, "")
		require.NoError(t, c.get(auth.WithoutToken(t.Context())))
		require.Zero(t, e.loggedIn())

		known := connect(t, e, testLogin, "known")
		require.NoError(t, known.get(auth.WithoutToken(t.Context())))
		require.Equal(t, []string{"", ""}, e.tokens())
	})
}

func TestALoginWaitsForTheConnection(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{}
		down := errors.New("there is no way")
		c := connectOn(t, e, testLogin, auth.Connection{Ready: func(context.Context, *grpc.ClientConn) error { return down }})
		require.ErrorIs(t, c.get(t.Context()), down)
		_, err := pb.NewLeaseClient(c.cc).LeaseKeepAlive(t.Context())
		require.ErrorIs(t, err, down)
		require.Zero(t, e.loggedIn())
	})
}

func TestAConnectionThatIsGivenUpLogsInNoMore(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{bcrypt: time.Minute}
		c := connect(t, e, testLogin, "")
		done := make(chan error, 20)
		go func() { done <- c.get(t.Context()) }()
		synctest.Wait()
		began := time.Now()
		c.leave()
		require.Equal(t, codes.Canceled, status.Code(<-done))
		c.Wait()
		require.ErrorIs(t, c.get(t.Context()), context.Canceled)
		require.Zero(t, time.Since(began))
		require.Equal(t, 1, e.loggedIn())
	})
}

func TestANilAccountIsThatOfAConnectionWithoutOne(t *testing.T) {
	t.Parallel()
	var none *auth.Account
	none.Wait()
	require.Empty(t, none.Token())
	require.False(t, none.IsLoggingIn())
	md, err := none.GetRequestMetadata(t.Context())
	require.NoError(t, err)
	require.Empty(t, md)
	require.False(t, none.RequireTransportSecurity())
}

func TestAnythingThatEtcdItselfSaysIsAnAnswer(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e := &server{}
		cc := serve(t, e)
		require.True(t, auth.IsAnswered(t.Context(), cc))
		for err, want := range map[error]bool{
			rpctypes.ErrGRPCPermissionDenied:                true,
			rpctypes.ErrGRPCNoLeader:                        true,
			status.Error(codes.Unavailable, "a proxy says"): false,
		} {
			e.set(func() { e.answer = onlyNew("none", err) })
			require.Equal(t, want, auth.IsAnswered(t.Context(), cc), "%v", err)
		}
	})
}
