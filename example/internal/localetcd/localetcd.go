// Package localetcd runs an etcd of one member inside the process, so that the examples need nothing installed.
package localetcd

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// startBound is for a machine whose disk is busy; a second is usual.
const startBound = 30 * time.Second

// Etcd is an etcd that lives until Close, in a temporary folder.
type Etcd struct {
	// Endpoint is where clients find it, as host:port.
	Endpoint string
	// Dir holds its data; Close removes it.
	Dir string

	close func() error // once: the server panics at a second
}

// Start starts an etcd on addr, host:port, or on a free port of the loopback interface when addr is taken or empty. ctx
// bounds the start, not the etcd.
func Start(ctx context.Context, addr string) (*Etcd, error) {
	ctx, cancel := context.WithTimeout(ctx, startBound)
	defer cancel()
	if addr != "" {
		etcd, err := start(ctx, addr)
		if !errors.Is(err, syscall.EADDRINUSE) {
			return etcd, err
		}
	}
	return start(ctx, "127.0.0.1:0")
}

func start(ctx context.Context, addr string) (_ *Etcd, err error) {
	dir, err := os.MkdirTemp("", "discov-etcd-")
	if err != nil {
		return nil, fmt.Errorf("local etcd: %w", err)
	}
	server, err := embed.StartEtcd(config(dir, addr))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("local etcd on %s: %w", addr, err), os.RemoveAll(dir))
	}
	etcd := &Etcd{Endpoint: server.Clients[0].Addr().String(), Dir: dir}
	etcd.close = sync.OnceValue(func() error {
		server.Close()
		return os.RemoveAll(dir)
	})
	select {
	case <-server.Server.ReadyNotify():
		return etcd, nil
	case err = <-server.Err():
	case <-ctx.Done():
		err = ctx.Err()
	}
	return nil, errors.Join(fmt.Errorf("local etcd on %s: %w", addr, err), etcd.Close())
}

func config(dir, addr string) *embed.Config {
	cfg := embed.NewConfig()
	cfg.Name = "local"
	cfg.Dir = dir
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.UnsafeNoFsync = true // nothing outlives the process
	client := url.URL{Scheme: "http", Host: addr}
	peer := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	return cfg
}

// Close stops the etcd and removes its folder. It may be called again.
func (e *Etcd) Close() error {
	return e.close()
}
