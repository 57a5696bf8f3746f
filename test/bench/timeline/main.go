// Timeline has go-zero's publisher and discov's keep a key in the same etcd, breaks what is between, and draws as an SVG when
// each key was there for who looks for it. What it draws is what an observer with a connection of its own has seen in this run.
//
// The picture has a background of its own, so that it is legible on a dark page as well as on a light one.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
)

func main() {
	etcdtest.RunIfChild()
	out := flag.String("out", "", "the `file` to write the SVG to")
	pace := flag.Duration("pace", 10*time.Second, "the TTL of discov's key; each fault lasts twice as long. go-zero's TTL is always 10 s.")
	flag.Parse()
	if err := run(*out, *pace); err != nil {
		fmt.Fprintln(os.Stderr, "timeline:", err)
		os.Exit(1)
	}
}

func run(out string, pace time.Duration) error {
	if out == "" {
		return errors.New("-out is needed")
	}
	picture, err := draw(play(pace))
	if err != nil {
		return err
	}
	if err := os.WriteFile(out, picture, 0o644); err != nil { //nolint:gosec // a picture is to be seen
		return fmt.Errorf("-out: %w", err)
	}
	return nil
}
