// Userclient finds user.rpc through etcd and calls it, while instances come and go.
//
//	go run ./example/userclient [-etcd 127.0.0.1:2379] [-every 1s] [-n 0]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/discov-go/discov/example/user"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
)

// callBound is for one call; a service that answers at all answers sooner.
const callBound = 2 * time.Second

// reconnect keeps the wait for a server that was away short: gRPC waits up to two minutes on its own.
var reconnect = grpc.WithConnectParams(grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 200 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
	MinConnectTimeout: 3 * time.Second,
})

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "userclient:", err)
		os.Exit(1)
	}
}

// settings is what the flags say.
type settings struct {
	etcd  string
	key   string
	every time.Duration
	count int
}

func parse(args []string, stderr io.Writer) (settings, error) {
	var s settings
	flags := flag.NewFlagSet("userclient", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&s.etcd, "etcd", "127.0.0.1:2379", "etcd `endpoints`, separated by commas")
	flags.StringVar(&s.key, "key", "user.rpc", "the service's `key`")
	flags.DurationVar(&s.every, "every", time.Second, "`time` between calls")
	flags.IntVar(&s.count, "n", 0, "`number` of calls (default: until a signal)")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flags.SetOutput(stderr)
		flags.Usage()
	case err != nil:
	case flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	case s.every <= 0:
		err = fmt.Errorf("-every %v: want more than 0", s.every)
	case s.count < 0:
		err = fmt.Errorf("-n %d: want 0 or more", s.count)
	}
	return s, err
}

// run calls until ctx is done, or the count is reached: then it fails when no call was answered.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	s, err := parse(args, stderr)
	if err != nil {
		return err
	}
	etcd, err := clientv3.New(clientv3.Config{
		Endpoints:            strings.Split(s.etcd, ","),
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 3 * time.Second,
		DialOptions:          []grpc.DialOption{reconnect},
		Logger:               zap.NewNop(),
	})
	if err != nil {
		return err
	}
	defer etcd.Close()
	conn, err := grpc.NewClient(scheme+":///"+s.key,
		reconnect,
		grpc.WithResolvers(builder{etcd: etcd}),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`),
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()

	users := user.NewUsersClient(conn)
	answered := 0
	tick := time.NewTicker(s.every)
	defer tick.Stop()
	for i := 0; s.count == 0 || i < s.count; i++ {
		if i > 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
		}
		if call(ctx, users, strconv.Itoa(i%3+1), stdout) {
			answered++
		}
	}
	if answered == 0 {
		return fmt.Errorf("none of %d calls was answered", s.count)
	}
	return nil
}

// call asks for one user, says who answered, and reports whether anybody did.
func call(ctx context.Context, users user.UsersClient, id string, stdout io.Writer) bool {
	ctx, cancel := context.WithTimeout(ctx, callBound)
	defer cancel()
	var from peer.Peer
	response, err := users.GetUser(ctx, &user.GetUserRequest{Id: id}, grpc.Peer(&from))
	if err != nil {
		_, _ = fmt.Fprintf(stdout, "user %s: %v\n", id, err)
		return false
	}
	_, _ = fmt.Fprintf(stdout, "user %s is %s, says %s\n", id, response.GetName(), from.Addr)
	return true
}
