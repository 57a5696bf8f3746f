package etcdtest_test

import (
	"net"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestProxyPassesRequestsAndStreamsOn(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	c := client(t, clientv3.Config{Endpoints: etcdtest.StartProxy(t, s.Endpoints()).Endpoints()})
	lease := grant(t, c, 60)
	_, err := c.KeepAliveOnce(short(t), lease.ID)
	require.NoError(t, err)
	put(t, c, "k", "v", clientv3.WithLease(lease.ID))
	require.Equal(t, "v", get(t, c, "k"))
	require.Equal(t, "v", get(t, s.Client(t), "k"))

	watch := c.Watch(short(t), "k", clientv3.WithCreatedNotify())
	require.True(t, (<-watch).Created)
	put(t, s.Client(t), "k", "w")
	require.Equal(t, "w", string((<-watch).Events[0].Kv.Value))
}

func TestProxyIsBackAtItsAddress(t *testing.T) {
	t.Parallel()
	s := etcdtest.Start(t, etcdtest.QuickTicks())
	p := etcdtest.StartProxy(t, s.Endpoints())
	endpoints := p.Endpoints()
	for _, again := range []func(){p.Start, func() { p.Kill(); p.Kill(); p.Start() }, p.Restart} {
		again()
		require.Equal(t, endpoints, p.Endpoints())
		c := client(t, clientv3.Config{Endpoints: endpoints})
		put(t, c, "k", "v")
		require.Equal(t, "v", get(t, c, "k"))
	}
	p.Kill()
	_, err := client(t, clientv3.Config{Endpoints: endpoints}).Get(within(t, 100*time.Millisecond), "k")
	require.Error(t, err)
}

func TestProxyThatCannotListenSaysSo(t *testing.T) {
	t.Parallel()
	said := failure(t, func(t testing.TB) {
		p := etcdtest.StartProxy(t, []string{"127.0.0.1:1"})
		p.Kill()
		another, err := net.Listen("tcp4", p.Endpoints()[0])
		require.NoError(t, err)
		defer another.Close()
		p.Start()
	})
	require.Contains(t, said, "start proxy")
	require.Contains(t, said, "address already in use")
}
