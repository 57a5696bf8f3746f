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
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
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
		ctx, leave := context.WithCancel(t.Context())
		account := auth.New(ctx, testLogin, 3, "good", isReady, quick)
		c := &connection{account, serve(t, e, account.DialOptions()...), leave}
		call, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.Error(t, c.get(call))
		require.Equal(t, "good", c.Token())
		require.Greater(t, e.asked(question), 10)
		leave()
		account.Wait()
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
		ctx, leave := context.WithCancel(t.Context())
		account := auth.New(ctx, testLogin, 1, "good", isReady, func() time.Duration { return 2 * time.Second })
		c := &connection{account, serve(t, e, account.DialOptions()...), leave}
		for range 20 {
			require.NoError(t, c.get(t.Context()))
		}
		require.Zero(t, e.asked(question))
		leave()
		account.Wait()
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
