// Userrpc is a small gRPC service that keeps itself registered in etcd, in the order that loses no call: it listens,
// serves, registers; on SIGINT or SIGTERM it withdraws, drains and ends.
//
//	go run ./example/userrpc [-f example/userrpc/etc/user.yaml]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/advertise"
	"github.com/discov-go/discov/discovhttp"
	"github.com/discov-go/discov/example/internal/localetcd"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
)

const (
	// notice is how long callers have to notice that the key is gone.
	notice = time.Second
	// drainBound is how long calls in progress may take after that.
	drainBound = 10 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "userrpc:", oneLine(err))
		os.Exit(1)
	}
}

// run serves until ctx is done.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	config, err := parse(args, stderr)
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", config.ListenOn)
	if err != nil {
		return fmt.Errorf("ListenOn: %w", err)
	}
	defer listener.Close()

	if len(config.Etcd.Hosts) == 0 {
		etcd, err := localetcd.Start(ctx, localEtcd)
		if err != nil {
			return err
		}
		defer func() {
			if err := etcd.Close(); err != nil {
				_, _ = fmt.Fprintln(stderr, "userrpc:", err)
			}
		}()
		config.Etcd.Hosts = []string{etcd.Endpoint}
		_, _ = fmt.Fprintf(stdout, "no Hosts in the config: a local etcd serves at %s, its data is in %s\n", etcd.Endpoint, etcd.Dir)
	}
	return serve(ctx, config, listener, stdout, stderr)
}

// serve is the life of an instance.
func serve(ctx context.Context, config config, listener net.Listener, stdout, stderr io.Writer) error {
	view, err := newView(config.Etcd, stdout)
	if err != nil {
		return err
	}
	defer view.close()

	healthy := health.NewServer()
	server := newServer(healthy)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	defer server.Stop()
	address, err := advertise.Addr(listener.Addr().String(), advertise.Loopback()) // as this example is tried on one machine
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(stdout, "%s serves at %s\n", config.Name, address)

	page := discovhttp.New()
	publisher, err := config.Etcd.NewPublisher(address, page.Show,
		discov.WithLogger(slog.New(slog.NewTextHandler(stderr, nil))),
		discov.WithDrain(notice),
		discov.WithHealthCheck(func(ctx context.Context) error { return checkHealth(ctx, healthy) }, discov.HealthPolicy{}),
	)
	if err != nil {
		return err
	}
	if config.AdminOn != "" {
		stop, err := startAdmin(ctx, config.AdminOn, page, publisher, stdout)
		if err != nil {
			return err
		}
		defer stop()
	}
	if err := publisher.KeepAliveContext(ctx); err != nil {
		return err
	}
	view.show("registered")

	var failed error
	select {
	case <-ctx.Done():
	case failed = <-served:
	}

	clean := context.WithoutCancel(ctx)
	if err := publisher.StopContext(clean); err != nil {
		// The key goes with its lease all the same; the calls in progress matter more.
		_, _ = fmt.Fprintln(stderr, "userrpc:", oneLine(err))
	} else {
		view.show("withdrawn")
	}
	healthy.Shutdown()
	if !drain(server, drainBound) {
		_, _ = fmt.Fprintf(stderr, "userrpc: calls cut off after %v\n", drainBound)
	}
	_, _ = fmt.Fprintln(stdout, "drained")
	return failed
}

// drain ends the server when its last call has ended, or when the bound is up: then it says false.
func drain(server *grpc.Server, bound time.Duration) bool {
	cutOff := time.AfterFunc(bound, server.Stop)
	server.GracefulStop()
	return cutOff.Stop()
}

// oneLine is err for a terminal: joined errors come a line each.
func oneLine(err error) string {
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}
