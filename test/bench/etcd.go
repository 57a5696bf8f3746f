package main

import (
	"errors"
	"fmt"
	"net"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// Etcd is a server of one member in a child process.
type Etcd struct{}

// Start runs the server on the data in dir, and returns its endpoint when it is ready.
func (*Etcd) Start(dir string, endpoint *string) error {
	client, peer, err := freeURLs()
	if err != nil {
		return err
	}
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.UnsafeNoFsync = true      // the disk is not what is measured
	cfg.EnableGRPCGateway = false // it is a client of its own, which would be counted
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	etcd, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	select {
	case <-etcd.Server.ReadyNotify():
	case <-etcd.Server.StopNotify():
		return errors.New("etcd stopped while it started")
	case err := <-etcd.Err():
		return fmt.Errorf("start etcd: %w", err)
	}
	*endpoint = client.Host
	return nil
}

// freeURLs returns two addresses that nothing listens at.
func freeURLs() (client, peer url.URL, err error) {
	loopback := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}
	one, err := net.ListenTCP("tcp", loopback)
	if err != nil {
		return client, peer, err
	}
	defer one.Close()
	other, err := net.ListenTCP("tcp", loopback)
	if err != nil {
		return client, peer, err
	}
	defer other.Close()
	return atAddr(one.Addr()), atAddr(other.Addr()), nil
}

func atAddr(a net.Addr) url.URL { return url.URL{Scheme: "http", Host: a.String()} }
