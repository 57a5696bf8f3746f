package conn

import (
	"context"
	"net"
	"os"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcd"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

func TestMain(m *testing.M) {
	code := etcdtest.Main(m)
	if code == 0 {
		if err := goleak.Find(); err != nil {
			println(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

const (
	testKey = "user.rpc"
	// eventually is for what must come, whenever.
	eventually = 10 * time.Second
)

func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// newConn returns a connection of the test's own.
func newConn(t *testing.T, to Target) *Conn {
	t.Helper()
	c, err := Open(to)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

// newCaller returns a user of a connection of the test's own.
func newCaller(t *testing.T, endpoints ...string) *Caller {
	t.Helper()
	return newConn(t, Target{}.To(endpoints)).Caller(Bounds{Call: eventually, Patience: time.Second, MaxPatience: time.Second})
}

func TestAConnectionThatIsFoundReadyIsNoAnswerOfEtcds(t *testing.T) {
	for _, call := range []time.Duration{usual.Call, 0} {
		inBubble(t, func(t *testing.T, f *fakeEtcd) {
			bounds := usual
			bounds.Call = call
			c, since := f.user(t, bounds), time.Now()
			l := c.requester.links.link()
			require.NoError(t, c.Ready(t.Context()))
			require.NoError(t, c.await(t.Context()))
			require.True(t, l.pulse.IsSilentSince(since))
			_, _, err := c.Get(t.Context(), testKey)
			require.NoError(t, err)
			require.False(t, l.pulse.IsSilentSince(since))
		})
	}
}

func TestAnOutdatedWriteIsNotSent(t *testing.T) {
	t.Parallel()
	srv := etcdtest.Start(t, etcdtest.QuickTicks())
	c := newCaller(t, srv.Endpoints()...)
	outdated := etcd.Write{Key: testKey, Value: "v", Outdated: func() bool { return true }}
	_, err := c.Put(t.Context(), outdated)
	require.ErrorIs(t, err, etcd.ErrOutdated)
	_, _, _, err = c.PutOver(t.Context(), etcd.Entry{}, outdated)
	require.ErrorIs(t, err, etcd.ErrOutdated)
	now, _, err := c.Get(t.Context(), testKey)
	require.NoError(t, err)
	require.False(t, now.Exists())
}

func TestAClientClosedByTheCallerWhileItIsWaitedForIsNamedAtOnce(t *testing.T) {
	t.Parallel()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{"127.0.0.1:1"}, Logger: zap.NewNop()})
	require.NoError(t, err)
	c := newConn(t, Target{Client: client}).Caller(Bounds{Call: eventually, Patience: time.Second, MaxPatience: time.Second})
	time.AfterFunc(200*time.Millisecond, func() { _ = client.Close() })
	began := time.Now()
	require.ErrorIs(t, c.Ready(t.Context()), etcd.ErrClientClosed)
	require.Less(t, time.Since(began), 2*time.Second)
}

func TestWhyThereIsNoConnectionIsFoundOutAnew(t *testing.T) {
	t.Parallel()
	rude, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer rude.Close()
	go func() {
		for {
			conn, err := rude.Accept()
			if err != nil {
				return
			}
			time.AfterFunc(200*time.Millisecond, func() { conn.Close() })
		}
	}()
	l := newConn(t, Target{}.To([]string{rude.Addr().String()})).links.link()
	require.Error(t, l.await(deadline(t, 50*time.Millisecond)))
	require.ErrorContains(t, l.await(deadline(t, time.Second)), "preface")
}
