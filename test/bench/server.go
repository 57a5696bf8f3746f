package main

import (
	"context"
	"os"
)

// A server is an etcd in a child process, with data of its own.
type server struct {
	*child
	endpoint string
	dir      string
}

// startServer returns when the new server answers.
func startServer(ctx context.Context) (s *server, err error) {
	dir, err := os.MkdirTemp("", "bench-etcd-")
	if err != nil {
		return nil, err
	}
	s = &server{dir: dir}
	if s.child, err = start(ctx, etcdRole); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	err = s.Call("Etcd.Start", dir, &s.endpoint)
	if err == nil {
		// One that is ready has its listener open, and answers as soon as it serves.
		_, err = scrape(ctx, s.endpoint)
	}
	if err != nil {
		s.end()
		return nil, err
	}
	return s, nil
}

// end ends the server, and removes its data.
func (s *server) end() {
	s.child.end()
	os.RemoveAll(s.dir)
}
