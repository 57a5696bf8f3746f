package discov

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

func TestNoSecretIsEverTold(t *testing.T) {
	t.Parallel()
	const right, wrong = "hunter2-right", "hunter2-wrong"
	srv := quickEtcd(t, etcdtest.WithAuth("u", right))
	log, told := &LogLines{}, &strings.Builder{}
	logger := WithLogger(slog.New(slog.NewJSONHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	var mu sync.Mutex
	observe := WithObserver(func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		written, err := json.Marshal(e)
		fmt.Fprintf(told, "%+v %s %v\n", e, written, err)
	})
	tell := func(what ...any) {
		mu.Lock()
		defer mu.Unlock()
		for _, one := range what {
			written, err := json.Marshal(one)
			fmt.Fprintf(told, "%v %+v %s %v\n", one, one, written, err)
		}
	}
	var tokens []string
	listen := Dialling(grpc.WithChainUnaryInterceptor(
		func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			err := invoke(ctx, method, req, reply, cc, opts...)
			if login, ok := reply.(*pb.AuthenticateResponse); ok && err == nil {
				mu.Lock()
				defer mu.Unlock()
				tokens = append(tokens, login.GetToken())
			}
			return err
		}))
	for _, pass := range []string{right, wrong} {
		p := newTestPublisher(t, srv.Endpoints(), WithId(testID), WithPubEtcdAccount("u", pass), listen, logger, observe,
			WithTimeout(500*time.Millisecond), WithTTL(2*time.Second))
		err := p.KeepAliveContext(deadline(t, eventually)) // which a wrong password ends at once
		require.Equal(t, pass == wrong, err != nil)
		tell(err, p, p.Status(), p.Stats())
		srv.AuthDisable(t)
		srv.AuthEnable(t) // which ends all tokens
		tell(p.Update(t.Context(), "another"), p.PauseContext(t.Context()), p.ResumeContext(t.Context()), p, p.Status())
		tell(p.StopContext(t.Context()), p, p.Status())
	}
	_, err := Config{Hosts: srv.Endpoints(), Key: "k", Pass: right}.NewPublisher("v")
	require.Error(t, err)
	tell(err)
	mu.Lock()
	defer mu.Unlock()
	for name, text := range map[string]string{"the log": log.String(), "what callers are told": told.String()} {
		require.NotEmpty(t, text)
		require.NotContains(t, text, "hunter2", "%s", name)
		require.NotEmpty(t, tokens)
		for _, token := range tokens {
			require.NotContains(t, text, token, "%s", name)
		}
	}
}

func TestAPasswordInTheClearIsAWarningOnceForEachConnection(t *testing.T) {
	t.Parallel()
	for endpoint, warned := range map[string]bool{
		"192.0.2.1:2379":        true, // TEST-NET-1, where nobody is
		"http://192.0.2.1:2379": true,
		"127.0.0.1:1":           false,
		"localhost:1":           false,
		"[::1]:1":               false,
		"unix:///nowhere":       false,
		"https://192.0.2.1:1":   false,
	} {
		t.Run(endpoint, func(t *testing.T) {
			t.Parallel()
			log := &LogLines{}
			var all []*Publisher
			for range 3 {
				p := newTestPublisher(t, []string{endpoint}, WithPubEtcdAccount("u", "p"), WithBackgroundStart(), log.Option())
				require.NoError(t, p.KeepAlive())
				all = append(all, p)
			}
			for _, p := range all {
				p.Stop()
			}
			if warned {
				etcdtest.RequireSoon(t, eventually, func() bool { return strings.Contains(log.String(), "in the clear") })
			}
			require.LessOrEqual(t, strings.Count(log.String(), "in the clear"), 1)
			require.Equal(t, warned, strings.Contains(log.String(), "in the clear"))
		})
	}
}
