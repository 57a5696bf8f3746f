package etcdtest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"testing"
)

// Main is TestMain for packages that use StartProcess or StartProxy: it returns m.Run's exit code, or never, in a child.
func Main(m *testing.M) int {
	RunIfChild()
	return m.Run()
}

// RunIfChild makes this process an etcd or a proxy, and never returns, if StartProcess or StartProxy of another one has
// started it. Call it first in TestMain, or in main.
func RunIfChild() {
	if spec := os.Getenv(childEnv); spec != "" {
		if err := serve(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// serve is the life of a child: until its parent is gone, which closes stdin, or asks it to go.
func serve(spec string) error {
	go func() {
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0) // orphaned
	}()
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM, syscall.SIGINT)

	var j job
	if err := json.Unmarshal([]byte(spec), &j); err != nil {
		return err
	}
	news := os.NewFile(3, "news")
	switch j.Kind {
	case memberJob:
		return run(j, serveMember, told, news)
	case proxyJob:
		return run(j, serveProxy, told, news)
	default:
		return fmt.Errorf("etcdtest: a child for %q", j.Kind)
	}
}

// run serves what the job tells.
func run[T any](j job, serve func(T, <-chan os.Signal, *os.File) error, told <-chan os.Signal, news *os.File) error {
	var config T
	if err := json.Unmarshal(j.Config, &config); err != nil {
		return err
	}
	return serve(config, told, news)
}
