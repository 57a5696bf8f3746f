package discovprom_test

import (
	"fmt"
	"log/slog"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/discovprom"
	"github.com/prometheus/client_golang/prometheus"
)

var quiet = slog.New(slog.DiscardHandler)

func ExampleNewCollector() {
	pub := discov.NewPublisher([]string{"127.0.0.1:2379"}, "user.rpc", "10.0.0.7:8080", discov.WithLogger(quiet))
	defer pub.Stop()

	registry := prometheus.NewRegistry() // served by promhttp.HandlerFor
	registry.MustRegister(discovprom.NewCollector(pub))

	families, err := registry.Gather()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, family := range families {
		fmt.Println(family.GetName(), len(family.GetMetric()))
	}
	// Output:
	// discov_connections 1
	// discov_publisher_attempts_total 1
	// discov_publisher_conflicts_total 1
	// discov_publisher_failures_total 1
	// discov_publisher_losses_total 7
	// discov_publisher_registration_duration_seconds 1
	// discov_publisher_registrations_total 1
	// discov_publisher_state 8
	// discov_publishers 1
}
