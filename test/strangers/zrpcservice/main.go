// Zrpcservice is a service on go-zero's zrpc, migrated as docs/migrating.md says: zrpc serves, and discov publishes.
package main

import (
	"flag"
	"log"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/advertise"
	"github.com/zeromicro/go-zero/core/conf"
	"github.com/zeromicro/go-zero/core/proc"
	"github.com/zeromicro/go-zero/zrpc"
	"google.golang.org/grpc"
)

type config struct {
	zrpc.RpcServerConf                 // without Etcd
	Registry           discov.EtcdConf // what was Etcd
}

func main() {
	file := flag.String("f", "etc/user.yaml", "the config file")
	flag.Parse()
	var c config
	conf.MustLoad(*file, &c)
	if err := serve(c); err != nil {
		log.Fatal(err)
	}
}

func serve(c config) error {
	server := zrpc.MustNewServer(c.RpcServerConf, func(*grpc.Server) {}) // zrpc's own health service is enough here
	defer server.Stop()
	addr, err := advertise.Addr(c.ListenOn, advertise.Loopback()) // it is tried on one machine
	if err != nil {
		return err
	}
	pub, err := c.Registry.NewPublisher(addr)
	if err != nil {
		return err
	}
	if err := pub.KeepAlive(); err != nil {
		return err
	}
	proc.AddWrapUpListener(pub.Stop)
	server.Start()
	pub.Stop() // waits for the withdrawal that the listener has begun
	return nil
}
