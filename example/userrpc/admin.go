package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/discovhttp"
	"github.com/discov-go/discov/discovprom"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// headerBound is how long a client may take to send its request.
const headerBound = 5 * time.Second

// startAdmin serves the status page and the metrics, on a port of their own for operators, probes and Prometheus.
func startAdmin(ctx context.Context, listenOn string, page *discovhttp.Handler, publisher *discov.Publisher, stdout io.Writer) (stop func(), err error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", listenOn)
	if err != nil {
		return nil, fmt.Errorf("AdminOn: %w", err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(discovprom.NewCollector(publisher))
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.Handle("/", page)
	server := &http.Server{Handler: mux, ReadHeaderTimeout: headerBound}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(listener) // until it is closed
	}()
	_, _ = fmt.Fprintf(stdout, "status at http://%s/, metrics at http://%s/metrics\n", listener.Addr(), listener.Addr())
	return func() {
		_ = server.Close()
		<-served
	}, nil
}
