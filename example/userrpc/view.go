package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/discov-go/discov"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// viewBound is for one look at etcd.
const viewBound = 3 * time.Second

// view shows what etcd has, over a connection of its own. A real service needs none.
type view struct {
	client *clientv3.Client
	key    string
	out    io.Writer
}

func newView(etcd discov.Config, out io.Writer) (*view, error) {
	config := clientv3.Config{
		Endpoints:   etcd.Hosts,
		Username:    etcd.User,
		Password:    etcd.Pass,
		DialTimeout: viewBound,
		Logger:      zap.NewNop(),
	}
	if etcd.CertFile != "" {
		files := transport.TLSInfo{
			CertFile:           etcd.CertFile,
			KeyFile:            etcd.CertKeyFile,
			TrustedCAFile:      etcd.CACertFile,
			InsecureSkipVerify: etcd.InsecureSkipVerify,
		}
		var err error
		if config.TLS, err = files.ClientConfig(); err != nil {
			return nil, err
		}
	}
	client, err := clientv3.New(config)
	if err != nil {
		return nil, fmt.Errorf("etcd at %s: %w", strings.Join(etcd.Hosts, ", "), err)
	}
	return &view{client: client, key: etcd.Key, out: out}, nil
}

// show prints the keys and values as etcdctl does. It is a view only: when it fails, the service goes on.
func (v *view) show(title string) {
	_, _ = fmt.Fprintf(v.out, "%s:\n$ etcdctl --endpoints %s get %s --prefix\n", title, strings.Join(v.client.Endpoints(), ","), v.key)
	ctx, cancel := context.WithTimeout(context.Background(), viewBound)
	defer cancel()
	response, err := v.client.Get(ctx, v.key, clientv3.WithPrefix())
	if err != nil {
		_, _ = fmt.Fprintln(v.out, err)
		return
	}
	for _, kv := range response.Kvs {
		_, _ = fmt.Fprintf(v.out, "%s\n%s\n", kv.Key, kv.Value)
	}
}

func (v *view) close() { _ = v.client.Close() }
