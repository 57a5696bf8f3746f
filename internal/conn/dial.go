package conn

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"slices"

	"github.com/discov-go/discov/internal/auth"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
)

// dial makes a link of the library's own, with a token if one is known. It does not wait for the connection.
func dial(to Target, brisk bool, token string, h *history) (*link, error) {
	l := newLink()
	l.brisk, l.ours = brisk, true
	client, err := l.newClient(to, token, h)
	if err != nil {
		l.leave()
		return nil, fmt.Errorf("discov: make a client for %s: %w", to, err)
	}
	l.attach(client, h)
	return l, nil
}

// newClient makes the client, with our settings, the user's tuning, and then what we do in the client's place.
func (l *link) newClient(to Target, token string, h *history) (*clientv3.Client, error) {
	config := settings(to, l.brisk)
	ofTarget := config.TLS
	if to.Tuning != nil {
		if err := to.Tuning.Apply(&config); err != nil {
			return nil, err
		}
	}
	load := func() (*tls.Config, error) { return config.TLS, nil }
	if to.hasFiles() && config.TLS == ofTarget {
		load = to.Files.Load
	}
	takeLimits(&config)
	takeRetries(&config)
	takeTLS(&config, load)
	l.takeAccount(&config, token, h)
	return clientv3.New(config)
}

func settings(to Target, brisk bool) clientv3.Config {
	connect := grpc.ConnectParams{
		Backoff:           grpcbackoff.Config{BaseDelay: reconnectLeast, Multiplier: 1.6, Jitter: 0.2, MaxDelay: reconnectMost},
		MinConnectTimeout: patientConnect,
	}
	if brisk {
		connect.MinConnectTimeout = briskConnect
		connect.Backoff.MaxDelay = briskReconnectMost
	}
	config := clientv3.Config{
		Endpoints:            to.list(),
		Username:             to.Login.User,
		Password:             to.Login.Pass,
		TLS:                  to.TLS.Clone(),
		DialKeepAliveTime:    pingAfter,
		DialKeepAliveTimeout: pingTimeout,
		Logger:               zap.NewNop(),
		DialOptions:          []grpc.DialOption{grpc.WithConnectParams(connect)},
	}
	if to.hasFiles() {
		config.TLS = &tls.Config{MinVersion: tls.VersionTLS12} // stands for the files
	}
	return config
}

// takeLimits makes the client's limits of a message those of the connection: our calls are not the client's.
func takeLimits(config *clientv3.Config) {
	limits := []grpc.CallOption{grpc.MaxCallRecvMsgSize(math.MaxInt32)} // the client's default
	if n := config.MaxCallRecvMsgSize; n > 0 {
		limits = append(limits, grpc.MaxCallRecvMsgSize(n))
	}
	if n := config.MaxCallSendMsgSize; n > 0 {
		limits = append(limits, grpc.MaxCallSendMsgSize(n))
	}
	config.DialOptions = append([]grpc.DialOption{grpc.WithDefaultCallOptions(limits...)}, config.DialOptions...)
}

// takeRetries takes the client's interceptor off the requests, where only ours would pass it: what is tried again is in the
// package's table (because: it never tried again what we ask for, but copied its metadata and had gRPC's stack grow to 16 KB,
// a tenth of a registration's CPU time).
func takeRetries(config *clientv3.Config) {
	if config.AutoSyncInterval > 0 || config.RejectOldCluster || config.Token != "" {
		return // the client's own requests need it
	}
	config.DialOptions = append([]grpc.DialOption{grpc.WithUnaryInterceptor(nil)}, config.DialOptions...)
}

// takeTLS takes the handshakes out of the client's hands into ours.
func takeTLS(config *clientv3.Config, load func() (*tls.Config, error)) {
	if config.TLS == nil && !slices.ContainsFunc(config.Endpoints, isSecure) {
		return
	}
	ours := grpc.WithTransportCredentials(auth.TLS(load))
	config.DialOptions = append([]grpc.DialOption{ours}, config.DialOptions...) // the tuning's own come after it
}

// takeAccount takes the account out of the client's hands into ours.
func (l *link) takeAccount(config *clientv3.Config, token string, h *history) {
	if config.Username == "" || config.Password == "" {
		return
	}
	as := auth.Login{User: config.Username, Pass: config.Password}
	ready := func(ctx context.Context, _ *grpc.ClientConn) error {
		select {
		case <-l.attached:
			return l.await(ctx)
		case <-ctx.Done(): // a request of the client's own, while it is being made
			return ctx.Err()
		}
	}
	l.account = auth.New(l.left, as, auth.Connection{
		Members: len(config.Endpoints), Token: token, Ready: ready, Late: l.pulse.Late, WentBack: h.lookOver,
	})
	config.Username, config.Password = "", ""
	config.DialOptions = append(config.DialOptions, l.account.DialOptions()...)
}
