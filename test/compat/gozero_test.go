package compat

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/advertise"
	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/zeromicro/go-zero/core/conf"
	gozero "github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/proc"
	"github.com/zeromicro/go-zero/zrpc"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// register is a function of a program that was written for go-zero's publisher: its import alone was changed.
func register(c discov.EtcdConf, addr string) (*discov.Publisher, error) {
	var opts []discov.PubOption
	if c.HasAccount() {
		opts = append(opts, discov.WithPubEtcdAccount(c.User, c.Pass))
	}
	if c.HasTLS() {
		opts = append(opts, discov.WithPubEtcdTLS(c.CertFile, c.CertKeyFile, c.CACertFile, c.InsecureSkipVerify))
	}
	if c.HasID() {
		opts = append(opts, discov.WithId(c.ID))
	}
	bundled := func(p *discov.Publisher) { // options bundled with the type that PubOption is
		for _, opt := range opts {
			opt(p)
		}
	}
	pub := discov.NewPublisher(c.Hosts, c.Key, addr, bundled)
	return pub, pub.KeepAlive()
}

// service is the configuration of a go-zero service, as its own loader reads it.
type service struct {
	Name     string
	ListenOn string
	Etcd     discov.EtcdConf
}

func TestAProgramForGoZerosPublisherChangesItsImportAlone(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.QuickTicks(), etcdtest.WithAuth("u", "hunter2"))
	for name, tried := range map[string]struct{ yaml, key string }{
		"the usual": {`
Name: user.rpc
ListenOn: 127.0.0.1:8080
Etcd:
  Hosts: [` + etcd.Endpoints()[0] + `]
  Key: usual
  User: u
  Pass: hunter2
`, "usual/"},
		"names in another case, all there is": {`
name: user.rpc
listenOn: 127.0.0.1:8080
etcd:
  hosts: [` + etcd.Endpoints()[0] + `]
  key: full
  id: 7
  user: u
  pass: hunter2
  ttl: 15s
  timeout: 3s
`, "full/7"},
	} {
		t.Run(name, func(t *testing.T) {
			var c service
			require.NoError(t, conf.LoadFromYamlBytes([]byte(tried.yaml), &c))
			pub, err := register(c.Etcd, "10.0.0.7:8080")
			require.NoError(t, err)
			defer pub.Stop()
			response, err := etcd.Client(t).Get(t.Context(), tried.key, clientv3.WithPrefix())
			require.NoError(t, err)
			require.Len(t, response.Kvs, 1)
			require.Equal(t, "10.0.0.7:8080", string(response.Kvs[0].Value))
			pub.Pause()
			pub.Resume()
		})
	}
	var c service
	require.NoError(t, conf.LoadFromYamlBytes([]byte("Name: a\nListenOn: b\nEtcd:\n  Hosts: [h:1]\n  Key: k\n  TTL: 15s\n"), &c))
	require.Equal(t, 15*time.Second, c.Etcd.TTL)
	require.NoError(t, c.Etcd.Validate())
}

func TestAZRPCClientCallsWhatIsPublished(t *testing.T) {
	t.Parallel()
	etcd := etcdtest.Start(t, etcdtest.QuickTicks())
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go func() { assert.NoError(t, server.Serve(listener)) }()
	t.Cleanup(server.Stop)
	pub := discov.NewPublisher(etcd.Endpoints(), key, listener.Addr().String())
	require.NoError(t, pub.KeepAlive())
	t.Cleanup(pub.Stop)

	client, err := zrpc.NewClient(zrpc.RpcClientConf{
		Etcd: gozero.EtcdConf{Hosts: etcd.Endpoints(), Key: key}, Timeout: 5000, NonBlock: true,
	})
	require.NoError(t, err)
	calls := grpc_health_v1.NewHealthClient(client.Conn())
	call := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := calls.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		return err
	}
	for range 20 {
		require.NoError(t, call())
	}
	require.NoError(t, pub.PauseContext(t.Context()))
	etcdtest.RequireSoon(t, eventually, func() bool { return call() != nil }, "nobody is left to call")
	require.NoError(t, pub.ResumeContext(t.Context()))
	etcdtest.RequireSoon(t, eventually, func() bool { return call() == nil }, "it is called again")
}

// TestAZRPCServiceIsMigrated is the service of docs/migrating.md, found and called by zrpc, through go-zero's own end of a
// process.
func TestAZRPCServiceIsMigrated(t *testing.T) {
	etcd := etcdtest.Start(t, etcdtest.QuickTicks())
	listenOn := etcdtest.FreeAddr(t)
	var c struct {
		zrpc.RpcServerConf
		Registry discov.EtcdConf
	}
	require.NoError(t, conf.LoadFromYamlBytes([]byte(`
Name: user.rpc
ListenOn: `+listenOn+`
Registry:
  Hosts: [`+etcd.Endpoints()[0]+`]
  Key: `+key+`
`), &c))
	require.False(t, c.HasEtcd(), "zrpc publishes nothing by itself")
	server := zrpc.MustNewServer(c.RpcServerConf, func(*grpc.Server) {})
	addr, err := advertise.Addr(c.ListenOn, advertise.Loopback())
	require.NoError(t, err)
	pub, err := c.Registry.NewPublisher(addr)
	require.NoError(t, err)
	require.NoError(t, pub.KeepAlive())
	proc.AddWrapUpListener(pub.Stop)
	go server.Start()
	t.Cleanup(server.Stop)

	client, err := zrpc.NewClient(zrpc.RpcClientConf{
		Etcd: gozero.EtcdConf{Hosts: etcd.Endpoints(), Key: key}, Timeout: 5000, NonBlock: true,
	})
	require.NoError(t, err)
	calls := grpc_health_v1.NewHealthClient(client.Conn())
	etcdtest.RequireSoon(t, eventually, func() bool {
		_, err := calls.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		return err == nil
	}, "it is called")
	proc.WrapUp()
	require.Equal(t, discov.StateStopped, pub.Status().State)
	response, err := etcd.Client(t).Get(t.Context(), key, clientv3.WithPrefix())
	require.NoError(t, err)
	require.Empty(t, response.Kvs)
}
