package main

import (
	"context"
	"time"
)

// settling is how long what began is left alone before it is at rest.
const settling = time.Second

// A use is CPU in percent of a core.
type use struct {
	process, etcd float64
}

// atRest watches a process and an etcd for so long.
func atRest(ctx context.Context, process *child, etcd *server, steady time.Duration) (use, error) {
	began := time.Now()
	processBefore, etcdBefore, err := cpus(process, etcd)
	if err != nil {
		return use{}, err
	}
	if err := pause(ctx, steady); err != nil {
		return use{}, err
	}
	processAfter, etcdAfter, err := cpus(process, etcd)
	lasted := time.Since(began)
	return use{
		process: percent(processAfter-processBefore, lasted),
		etcd:    percent(etcdAfter-etcdBefore, lasted),
	}, err
}

func cpus(process *child, etcd *server) (ofProcess, ofEtcd time.Duration, err error) {
	if ofProcess, err = process.cpu(); err != nil {
		return 0, 0, err
	}
	ofEtcd, err = etcd.cpu()
	return ofProcess, ofEtcd, err
}

// idleUse is what a process of this program and an etcd use with nothing to do.
func idleUse(ctx context.Context, steady time.Duration) (use, error) {
	etcd, err := startServer(ctx)
	if err != nil {
		return use{}, err
	}
	defer etcd.end()
	process, err := start(ctx, registrarRole)
	if err != nil {
		return use{}, err
	}
	defer process.end()
	if err := pause(ctx, settling); err != nil {
		return use{}, err
	}
	return atRest(ctx, process, etcd, steady)
}

// pause returns after d, or with ctx's error.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func percent(part, of time.Duration) float64 { return 100 * part.Seconds() / of.Seconds() }

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
