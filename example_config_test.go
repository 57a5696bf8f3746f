package discov_test

import (
	"errors"
	"fmt"

	"github.com/discov-go/discov"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.yaml.in/yaml/v4"
)

// A Config is a part of the file that a service has anyway.
func ExampleConfig() {
	const file = `
Name: user
Etcd:
  Hosts: [etcd-1:2379, etcd-2:2379, etcd-3:2379]
  Key: user.rpc
  ID: 7
  TTL: 15s
`
	var config struct {
		Name string        `yaml:"Name"`
		Etcd discov.Config `yaml:"Etcd"`
	}
	if err := yaml.Unmarshal([]byte(file), &config); err != nil {
		fmt.Println(err)
		return
	}
	pub, err := config.Etcd.NewPublisher("10.0.0.7:8080") // more options may follow
	fmt.Println(pub, err)
	// Output: user.rpc/7 idle <nil>
}

// Files are read at each handshake, so that they may be replaced while the service runs. Bad ones are an error of KeepAlive.
func ExampleWithPubEtcdTLS() {
	pub := discov.NewPublisher([]string{"https://etcd-1:2379"}, "user.rpc", "10.0.0.7:8080",
		discov.WithPubEtcdTLS("/etc/user/tls.crt", "/etc/user/tls.key", "/etc/user/ca.crt", false))
	err := pub.KeepAlive()
	fmt.Println(errors.Is(err, discov.ErrTLS)) // there are no such files here
	// Output: true
}

// A client that the service has anyway may be used, with the settings that it has.
func ExampleWithClient() {
	client, err := clientv3.New(clientv3.Config{Endpoints: localEtcd(), Logger: zap.NewNop()})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer client.Close() // after Stop

	pub := discov.NewPublisher(nil, "user.rpc", "10.0.0.7:8080", discov.WithId(13), discov.WithClient(client))
	if err := pub.KeepAlive(); err != nil {
		fmt.Println(err)
		return
	}
	defer pub.Stop()
	fmt.Println(pub)
	// Output: user.rpc/13 published
}
