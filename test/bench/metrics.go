package main

import (
	"context"
	"fmt"
	"net/http"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// metrics are what etcd has counted since its start.
type metrics struct {
	requests map[string]float64 // by gRPC method: calls, and the messages of streams
	watchers int                // now
}

// Each scrape has a connection of its own, so that none is open while etcd is measured.
var scraper = http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func scrape(ctx context.Context, endpoint string) (metrics, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+endpoint+"/metrics", http.NoBody)
	if err != nil {
		return metrics{}, err
	}
	resp, err := scraper.Do(req)
	if err != nil {
		return metrics{}, err
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return metrics{}, fmt.Errorf("etcd's metrics: %w", err)
	}
	return read(families)
}

func read(families map[string]*dto.MetricFamily) (metrics, error) {
	started, received := families["grpc_server_started_total"], families["grpc_server_msg_received_total"]
	watchers := families["etcd_debugging_mvcc_watcher_total"]
	if started == nil || received == nil || len(watchers.GetMetric()) != 1 {
		return metrics{}, fmt.Errorf("etcd's metrics: a counter of requests or watchers is missing among %d", len(families))
	}
	m := metrics{requests: map[string]float64{}, watchers: int(watchers.GetMetric()[0].GetGauge().GetValue())}
	for _, call := range started.GetMetric() {
		if label(call, "grpc_type") == "unary" {
			m.requests[label(call, "grpc_method")] += call.GetCounter().GetValue()
		}
	}
	for _, messages := range received.GetMetric() {
		if label(messages, "grpc_type") != "unary" {
			m.requests[label(messages, "grpc_method")] += messages.GetCounter().GetValue()
		}
	}
	return m, nil
}

func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// since returns the requests since earlier, divided by n, of the methods that had any.
func (m metrics) since(earlier metrics, n float64) map[string]float64 {
	requests := map[string]float64{}
	for method, count := range m.requests {
		if count -= earlier.requests[method]; count > 0 {
			requests[method] = count / n
		}
	}
	return requests
}
