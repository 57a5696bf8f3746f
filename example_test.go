package discov_test

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// exampleEtcd is for an etcd that all examples share, started by the first.
var exampleEtcd etcdtest.Program

var localEtcd = sync.OnceValue(func() []string {
	return etcdtest.Start(&exampleEtcd, etcdtest.QuickTicks()).Endpoints()
})

func Example() {
	endpoints := localEtcd() // such as []string{"10.0.0.1:2379", "10.0.0.2:2379", "10.0.0.3:2379"}

	pub := discov.NewPublisher(endpoints, "user.rpc", "10.0.0.7:8080", discov.WithId(1))
	if err := pub.KeepAlive(); err != nil {
		fmt.Println(err)
		return
	}
	defer pub.Stop()

	status := pub.Status()
	fmt.Println(status.State, status.Key, status.Value)
	// Output: published user.rpc/1 10.0.0.7:8080
}

func ExamplePublisher_Pause() {
	pub := discov.NewPublisher(localEtcd(), "user.rpc", "10.0.0.7:8080", discov.WithId(2))
	if err := pub.KeepAlive(); err != nil {
		fmt.Println(err)
		return
	}
	defer pub.Stop()

	pub.Pause() // new callers go elsewhere
	fmt.Println(pub.Status().State)
	pub.Resume()
	fmt.Println(pub.Status().State)
	// Output:
	// paused
	// published
}

func ExamplePublisher_Update() {
	pub := discov.NewPublisher(localEtcd(), "user.rpc", "10.0.0.7:8080", discov.WithId(3))
	if err := pub.KeepAlive(); err != nil {
		fmt.Println(err)
		return
	}
	defer pub.Stop()

	if err := pub.Update(context.Background(), "10.0.0.7:9090"); err != nil {
		fmt.Println(err) // it is tried again in the background
	}
	fmt.Println(pub.Status().Value)
	// Output: 10.0.0.7:9090
}

func ExampleWithObserver() {
	told := make(chan discov.Event, 16)
	pub := discov.NewPublisher(localEtcd(), "user.rpc", "10.0.0.7:8080", discov.WithId(4),
		discov.WithObserver(func(e discov.Event) { told <- e }))
	if err := pub.KeepAlive(); err != nil {
		fmt.Println(err)
		return
	}
	pub.Stop()

	for e := range told {
		fmt.Println(e.From, "->", e.To)
		if e.To == discov.StateStopped {
			return
		}
	}
	// Output:
	// idle -> registering
	// registering -> published
	// published -> withdrawing
	// withdrawing -> stopped
}

// Run suits errgroup, oklog/run and signal.NotifyContext: it registers, waits, and withdraws.
func ExamplePublisher_Run() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	pub := discov.NewPublisher(localEtcd(), "user.rpc", "10.0.0.7:8080", discov.WithId(5), discov.WithDrain(time.Millisecond))

	var group errgroup.Group
	group.Go(func() error { return pub.Run(ctx) })
	group.Go(func() error {
		stop() // as a signal would
		return nil
	})
	fmt.Println(group.Wait(), pub.Status().State)
	// Output: <nil> stopped
}

// The health service of the same process is a good check: it belongs to this instance alone.
func ExampleWithHealthCheck() {
	healthy := health.NewServer() // the one that the server has
	check := func(ctx context.Context) error {
		response, err := healthy.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			return err
		}
		if now := response.GetStatus(); now != grpc_health_v1.HealthCheckResponse_SERVING {
			return fmt.Errorf("the server is %s", now)
		}
		return nil
	}
	pub := discov.NewPublisher(localEtcd(), "user.rpc", "10.0.0.7:8080", discov.WithId(6),
		discov.WithHealthCheck(check, discov.HealthPolicy{}))
	healthy.Shutdown()
	if err := pub.KeepAlive(); err != nil {
		fmt.Println(err)
		return
	}
	defer pub.Stop()
	fmt.Println(pub.Status().State)
	fmt.Println(pub.Status().Err)
	// Output:
	// unhealthy
	// discov: user.rpc/6: the health check failed: the server is NOT_SERVING
}

func ExamplePublisher_Stats() {
	pub := discov.NewPublisher(localEtcd(), "user.rpc", "10.0.0.7:8080", discov.WithId(7))
	if err := pub.KeepAlive(); err != nil {
		fmt.Println(err)
		return
	}
	defer pub.Stop()
	stats := pub.Stats()
	fmt.Println(stats.Registrations, stats.Failures, stats.Losses[discov.CauseLeaseEnded])
	// Output: 1 0 0
}

func ExampleGRPCValue() {
	value, err := discov.GRPCValue("10.0.0.7:8080", map[string]string{"zone": "a"})
	fmt.Println(value, err)
	// Output: {"Op":0,"Addr":"10.0.0.7:8080","Metadata":{"zone":"a"}} <nil>
}
