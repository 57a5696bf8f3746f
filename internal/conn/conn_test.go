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
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/api/v3/version"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
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
	user := newConn(t, Target{}.To(endpoints)).Caller(Bounds{Call: eventually, Patience: time.Second, MaxPatience: time.Second})
	return &user
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

func TestARequestIsTriedAgainAsOurTableSays(t *testing.T) {
	for name, tried := range map[string]struct {
		tune func(*clientv3.Config)
		more bool
	}{
		"not by the client": {func(*clientv3.Config) {}, false},
		"by the client, where it needs that for its own requests": {func(c *clientv3.Config) { c.AutoSyncInterval = time.Hour }, true},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				asked, versions := 0, []string(nil)
				f.before = func(ctx context.Context, request any) error {
					if _, ok := request.(*pb.RangeRequest); !ok {
						return nil
					}
					asked++
					md, _ := metadata.FromIncomingContext(ctx)
					versions = md.Get(rpctypes.MetadataClientAPIVersionKey)
					return status.Error(codes.Unavailable, "there is no address available") // which the client tries again
				}
				to := f.target()
				dial := to.Tuning.Apply
				to.Tuning.Apply = func(c *clientv3.Config) error { tried.tune(c); return dial(c) }
				c := newConn(t, to).Caller(boundless)
				_, _, err := c.Get(deadline(t, 200*time.Millisecond), testKey)
				require.Error(t, err)
				require.Equal(t, tried.more, asked > 1, "it was asked %d times", asked)
				require.Equal(t, []string{version.APIVersion}, versions)
			})
		})
	}
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
