// Script registers an instance that cannot do so itself, and writes its status as a line of JSON whenever that changes, until
// it is told to end.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"log"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/discov-go/discov"
)

func main() {
	etcd := flag.String("etcd", "127.0.0.1:2379", "etcd's endpoints, separated by commas")
	key := flag.String("key", "", "the key")
	value := flag.String("value", "", "the value")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	out := json.NewEncoder(os.Stdout)
	changed := make(chan discov.Event, 1)
	pub := discov.NewPublisher(strings.Split(*etcd, ","), *key, *value, discov.WithObserver(func(e discov.Event) { changed <- e }))
	ended := make(chan error, 1)
	go func() { ended <- pub.Run(ctx) }()
	for {
		select {
		case <-changed:
			if err := out.Encode(pub.Status()); err != nil {
				log.Fatal(err)
			}
		case err := <-ended:
			if err != nil {
				log.Fatal(err)
			}
			return
		}
	}
}
