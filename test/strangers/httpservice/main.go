// Httpservice is an HTTP service as somebody writes it who has read the README.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/advertise"
	"github.com/discov-go/discov/discovhttp"
	"github.com/discov-go/discov/discovprom"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

func main() {
	etcd := flag.String("etcd", "127.0.0.1:2379", "etcd's endpoints, separated by commas")
	flag.Parse()
	if err := serve(strings.Split(*etcd, ",")); err != nil {
		log.Fatal(err)
	}
}

func serve(endpoints []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	addr, err := advertise.Addr(listener.Addr().String(), advertise.Loopback())
	if err != nil {
		return err
	}
	page := discovhttp.New()
	pub := discov.NewPublisher(endpoints, "user.http", addr, discov.WithDrain(200*time.Millisecond), page.Show)
	prometheus.MustRegister(discovprom.NewCollector(pub))

	mux := http.NewServeMux()
	mux.HandleFunc("GET /hello", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") })
	mux.Handle("GET /metrics", promhttp.Handler())
	mux.Handle("/discov/", http.StripPrefix("/discov", page))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}

	var group errgroup.Group
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			stop()
			return err
		}
		return nil
	})
	group.Go(func() error {
		err := pub.Run(ctx)
		return errors.Join(err, server.Shutdown(context.Background()))
	})
	return group.Wait()
}
