package main

import (
	"context"
	"time"
)

// A use is CPU in percent of a core.
type use struct {
	process, etcd float64
}

func (u use) minus(v use) use { return use{u.process - v.process, u.etcd - v.etcd} }

// uses are those of a trial's own pair and of the idle one, in the same time.
type uses struct {
	own, idle use
}

// since returns what the own pair uses more than in base, less the drift: what the idle one uses more, which is the
// machine's doing. The two are not compared with each other, since two idle etcds have differed by 0.2 % of a core for as
// long as they ran.
func (u uses) since(base uses) (net, drift use) {
	drift = u.idle.minus(base.idle)
	return u.own.minus(base.own).minus(drift), drift
}

// A pair is a process that registers and its etcd.
type pair struct {
	registrar *child
	etcd      *server
}

// startPair returns a pair with nothing to do.
func startPair(ctx context.Context) (pair, error) {
	etcd, err := startServer(ctx)
	if err != nil {
		return pair{}, err
	}
	registrar, err := start(ctx, registrarRole)
	if err != nil {
		etcd.end()
		return pair{}, err
	}
	return pair{registrar, etcd}, nil
}

func (p pair) end() {
	p.registrar.end()
	p.etcd.end()
}

func (p pair) cpus() (ofProcess, ofEtcd time.Duration, err error) {
	if ofProcess, err = p.registrar.cpu(); err != nil {
		return 0, 0, err
	}
	ofEtcd, err = p.etcd.cpu()
	return ofProcess, ofEtcd, err
}

// watch returns what the pair uses in the time that wait takes.
func (p pair) watch(wait func() error) (use, error) {
	began := time.Now()
	processBefore, etcdBefore, err := p.cpus()
	if err != nil {
		return use{}, err
	}
	if err := wait(); err != nil {
		return use{}, err
	}
	processAfter, etcdAfter, err := p.cpus()
	lasted := time.Since(began)
	return use{
		process: percent(processAfter-processBefore, lasted),
		etcd:    percent(etcdAfter-etcdBefore, lasted),
	}, err
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
