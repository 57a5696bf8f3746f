package discov_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/discov-go/discov"
	"github.com/oklog/run"
	"golang.org/x/sync/errgroup"
)

// tell returns an option, and a channel that is closed once the key is in etcd.
func tell() (discov.PubOption, <-chan struct{}) {
	published := make(chan struct{})
	once := sync.OnceFunc(func() { close(published) })
	return discov.WithObserver(func(e discov.Event) {
		if e.To == discov.StatePublished {
			once()
		}
	}), published
}

// In a group of oklog/run, a Publisher ends with the others, and ends them where it cannot register.
func ExamplePublisher_Run_actor() {
	observe, published := tell()
	pub := discov.NewPublisher(localEtcd(), "user.rpc", "10.0.0.7:8080", discov.WithId(8), observe)

	ctx, cancel := context.WithCancel(context.Background())
	var group run.Group
	group.Add(func() error { return pub.Run(ctx) }, func(error) { cancel() })
	group.Add(func() error { // your server, say
		select {
		case <-published:
			return errors.New("the server has failed")
		case <-ctx.Done():
			return nil
		}
	}, func(error) { cancel() })

	fmt.Println(group.Run(), pub.Status().State)
	// Output: the server has failed stopped
}

// The key goes first, callers notice, and then the server ends: Shutdown comes after Run.
func ExamplePublisher_Run_httpServer() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	observe, published := tell()
	server := &http.Server{ReadHeaderTimeout: 5 * time.Second}
	pub := discov.NewPublisher(localEtcd(), "user.http", listener.Addr().String(), discov.WithId(9),
		discov.WithDrain(10*time.Millisecond), observe)

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var group errgroup.Group
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			stop()
			return err
		}
		return nil
	})
	group.Go(func() error {
		defer stop()
		err := pub.Run(ctx)
		return errors.Join(err, server.Shutdown(context.Background()))
	})

	select {
	case <-published:
		stop() // as a signal would
	case <-ctx.Done():
	}
	fmt.Println(group.Wait(), pub.Status().State)
	// Output: <nil> stopped
}

func ExamplePublisher_Status() {
	pub := discov.NewPublisher(localEtcd(), "user.rpc", "10.0.0.7:8080", discov.WithId(10))
	if err := pub.KeepAlive(); err != nil {
		fmt.Println(err)
		return
	}
	defer pub.Stop()

	s := pub.Status() // json.Marshal writes it as a script wants it
	fmt.Println(s.State, s.Key, s.Value, s.TTL, s.Until.After(time.Now()), s.Err)
	// Output: published user.rpc/10 10.0.0.7:8080 10s true <nil>
}

func ExampleWithdrawError() {
	pub := discov.NewPublisher(localEtcd(), "user.rpc", "10.0.0.7:8080", discov.WithId(11))
	if err := pub.KeepAlive(); err != nil {
		fmt.Println(err)
		return
	}
	defer pub.Stop()

	ctx, cancel := context.WithCancel(context.Background())
	cancel() // as bad as an etcd that does not answer
	err := pub.StopContext(ctx)

	var left *discov.WithdrawError
	if errors.As(err, &left) {
		fmt.Println(left.Key, "may be there for a while:", left.Until.Before(time.Now().Add(time.Minute)))
	}
	// Output: user.rpc/11 may be there for a while: true
}

// ErrConflict and its like are for errors.Is.
func ExamplePublisher_Update_conflict() {
	pub := discov.NewPublisher(localEtcd(), "user.rpc", "10.0.0.7:8080", discov.WithId(12))
	twin := discov.NewPublisher(localEtcd(), "user.rpc", "10.0.0.8:8080", discov.WithId(12)) // by mistake
	defer pub.Stop()
	defer twin.Stop()
	if err := errors.Join(pub.KeepAlive(), twin.KeepAlive()); err != nil { // the last one takes the key
		fmt.Println(err)
		return
	}

	err := pub.Update(context.Background(), "10.0.0.7:9090")
	fmt.Println(errors.Is(err, discov.ErrConflict))
	// Output: true
}
