package discov_test

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
)

// exampleTB is what etcdtest wants of a test, where there is none.
type exampleTB struct {
	testing.TB
	cleanups []func()
}

func (tb *exampleTB) Helper()                           {}
func (tb *exampleTB) Cleanup(f func())                  { tb.cleanups = append(tb.cleanups, f) }
func (tb *exampleTB) Fatal(args ...any)                 { panic(fmt.Sprint(args...)) }
func (tb *exampleTB) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }

func (tb *exampleTB) TempDir() string {
	dir, err := os.MkdirTemp("", "discov-example")
	if err != nil {
		panic(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

var exampleEtcd exampleTB

// localEtcd is the endpoints of an etcd for all examples, started by the first.
var localEtcd = sync.OnceValue(func() []string {
	return etcdtest.Start(&exampleEtcd, etcdtest.QuickTicks()).Endpoints()
})

func stopExampleEtcd() {
	for i := len(exampleEtcd.cleanups) - 1; i >= 0; i-- {
		exampleEtcd.cleanups[i]()
	}
}

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
