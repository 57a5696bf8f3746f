package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/discov-go/discov/test/bench/internal/results"
)

const (
	// patience is how long keys may take to come back, or to go.
	patience = 30 * time.Second
	// settling is how long what began is left alone before it is at rest.
	settling = time.Second
	// aftermath is when the last Stop is long over, and what it left is there to stay.
	aftermath = 5 * time.Second
	// baseRatio is how many times shorter than at rest the pairs are watched before the first start.
	baseRatio = 3
)

// A trial is one run of one kind: from a process that does nothing to what is left after the last Stop, or of the starts
// alone.
type trial struct {
	settings settings

	own   pair
	idle  pair             // beside it, on the same machine at the same time
	admin *clientv3.Client // beside the registrations, and silent while etcd is measured

	before  Footprint
	base    uses        // before the first start
	settled metrics     // a moment after the last registration
	row     results.Row // its first fields say what is tried; each step fills in what it finds
}

// run makes the trial with pairs of its own, and returns its row.
func (t *trial) run(ctx context.Context) (row results.Row, err error) {
	if t.idle, err = startPair(ctx); err != nil {
		return row, err
	}
	defer t.idle.end()
	if t.own, err = startPair(ctx); err != nil {
		return row, err
	}
	defer t.own.end()
	t.admin, err = clientv3.New(clientv3.Config{Endpoints: []string{t.own.etcd.endpoint}, Logger: zap.NewNop()})
	if err != nil {
		return row, err
	}
	defer t.admin.Close()

	steps := []func(context.Context) error{t.baseline, t.register, t.rest, t.weigh, t.revoke, t.stop, t.leave}
	if t.row.Brief {
		steps = []func(context.Context) error{t.register}
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return row, err
		}
	}
	return t.row, nil
}

// baseline measures what is used before there is anything to do.
func (t *trial) baseline(ctx context.Context) (err error) {
	if err := pause(ctx, settling); err != nil {
		return err
	}
	t.base, err = t.watch(ctx, t.settings.steady/baseRatio)
	return err
}

// watch measures what both pairs use for so long.
func (t *trial) watch(ctx context.Context, d time.Duration) (u uses, err error) {
	u.idle, err = t.idle.watch(func() (err error) {
		u.own, err = t.own.watch(func() error { return pause(ctx, d) })
		return err
	})
	return u, err
}

func (t *trial) register(ctx context.Context) error {
	var err error
	if t.before, err = t.footprint(); err != nil {
		return err
	}
	before, err := scrape(ctx, t.own.etcd.endpoint)
	if err != nil {
		return err
	}
	job := Job{t.row.Kind, t.row.Size, t.row.Shape, t.settings.atOnce, t.own.etcd.endpoint}
	var cost Cost
	if err := t.own.registrar.Call("Registrar.Register", job, &cost); err != nil {
		return fmt.Errorf("register: %w", err)
	}
	if err := pause(ctx, settling); err != nil {
		return err
	}
	if t.settled, err = scrape(ctx, t.own.etcd.endpoint); err != nil {
		return err
	}
	t.row.RegisterMS, t.row.RegisterCPUMS = ms(cost.Wall), ms(cost.CPU)
	t.row.RequestsPerRegistration = t.settled.since(before, float64(t.row.Size))
	return nil
}

func (t *trial) rest(ctx context.Context) error {
	began := time.Now()
	full, err := t.watch(ctx, t.settings.steady)
	if err != nil {
		return err
	}
	after, err := scrape(ctx, t.own.etcd.endpoint)
	if err != nil {
		return err
	}
	aSecond := after.since(t.settled, time.Since(began).Seconds())
	t.row.KeepalivesPerS, t.row.RangesPerS = aSecond["LeaseKeepAlive"], aSecond["Range"]
	net, drift := full.since(t.base)
	t.row.RestCPUPercent, t.row.RestEtcdCPUPercent = net.process, net.etcd
	t.row.BaseCPUPercent, t.row.BaseEtcdCPUPercent = t.base.own.process, t.base.own.etcd
	t.row.DriftCPUPercent, t.row.DriftEtcdCPUPercent = drift.process, drift.etcd
	return nil
}

func (t *trial) weigh(context.Context) error {
	now, err := t.footprint()
	size := float64(t.row.Size)
	t.row.BytesPerRegistration = float64(now.Bytes-t.before.Bytes) / size
	t.row.GoroutinesPerRegistration = float64(now.Goroutines-t.before.Goroutines) / size
	return err
}

// revoke takes all leases away and waits for the keys; not for those of raw, which would not come.
func (t *trial) revoke(ctx context.Context) error {
	if t.row.Kind == results.Raw {
		return nil
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	keys, err := watchKeys(watching, t.admin)
	if err != nil {
		return err
	}
	revision, err := revokeAll(ctx, t.admin, t.settings.atOnce)
	if err != nil {
		return fmt.Errorf("revoke: %w", err)
	}
	began := time.Now()
	stopWaiting := time.AfterFunc(patience, cancel)
	defer stopWaiting.Stop()
	t.row.BackMS, err = took(ctx, began, keys.until(watching, t.row.Size, revision))
	return err
}

func (t *trial) stop(ctx context.Context) error {
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	keys, err := watchKeys(watching, t.admin)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := t.own.registrar.Call("Registrar.Stop", struct{}{}, &struct{}{}); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	stopWaiting := time.AfterFunc(patience, cancel)
	defer stopWaiting.Stop()
	t.row.StopMS, err = took(ctx, began, keys.until(watching, 0, 0))
	return err
}

// took returns how long it took until err was known, in milliseconds, or nil if that was given up while ctx goes on.
func took(ctx context.Context, began time.Time, err error) (*float64, error) {
	if errors.Is(err, context.Canceled) && ctx.Err() == nil {
		return nil, nil
	}
	lasted := ms(time.Since(began))
	return &lasted, err
}

func (t *trial) leave(ctx context.Context) error {
	if err := pause(ctx, aftermath); err != nil {
		return err
	}
	now, err := t.footprint()
	if err != nil {
		return err
	}
	counted, err := scrape(ctx, t.own.etcd.endpoint)
	if err != nil {
		return err
	}
	leases, err := t.admin.Leases(ctx)
	if err != nil {
		return err
	}
	keys, err := t.admin.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err != nil {
		return err
	}
	t.row.LeftGoroutines = now.Goroutines - t.before.Goroutines
	t.row.LeftLeases, t.row.LeftWatchers, t.row.LeftKeys = len(leases.Leases), counted.watchers, int(keys.Count)
	return nil
}

func (t *trial) footprint() (f Footprint, err error) {
	err = t.own.registrar.Call("Registrar.Footprint", struct{}{}, &f)
	return f, err
}
