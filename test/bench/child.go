package main

import (
	"context"
	"fmt"
	"io"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"os/exec"
	"time"
)

// A role is what this program does as a child process.
type role string

const (
	roleEnv = "DISCOV_BENCH_ROLE"

	etcdRole      role = "Etcd"
	registrarRole role = "Registrar"
)

// runIfChild serves the parent, and never returns, if this process is a child.
func runIfChild() {
	var service any
	switch r := role(os.Getenv(roleEnv)); r {
	case "":
		return
	case etcdRole:
		service = &Etcd{}
	case registrarRole:
		service = &Registrar{}
	default:
		fmt.Fprintf(os.Stderr, "bench: %s=%q is no role\n", roleEnv, r)
		os.Exit(2)
	}
	server := rpc.NewServer()
	for _, s := range []any{service, &Process{}} {
		if err := server.Register(s); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(2)
		}
	}
	server.ServeCodec(jsonrpc.NewServerCodec(lifeline{os.Stdin, os.Stdout}))
}

// A lifeline is a child's end of the pipes. The process ends with them, and so with its parent, whatever is under way.
type lifeline struct {
	io.ReadCloser
	io.Writer
}

func (l lifeline) Read(p []byte) (int, error) {
	n, err := l.ReadCloser.Read(p)
	if err != nil {
		os.Exit(0)
	}
	return n, nil
}

// A child is a process of this program that does as it is told.
type child struct {
	*rpc.Client
	cmd *exec.Cmd
}

// start runs this program once more. The child ends with ctx, with end and with this process, whichever is first.
func start(ctx context.Context, r role) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	// go-zero's client has a log of its own, which only the environment silences.
	cmd.Env = append(os.Environ(), roleEnv+"="+string(r), "ETCD_CLIENT_DEBUG=fatal")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &child{jsonrpc.NewClient(pipes{out, in}), cmd}, nil
}

// end ends the child, and returns when it is gone.
func (c *child) end() {
	c.Close()
	_ = c.cmd.Wait() // that it was killed is no news
}

// cpu returns the CPU time that the child has used so far.
func (c *child) cpu() (used time.Duration, err error) {
	err = c.Call("Process.CPU", struct{}{}, &used)
	return used, err
}

// pipes are the parent's end.
type pipes struct {
	io.Reader
	io.WriteCloser
}
