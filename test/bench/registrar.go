package main

import (
	"fmt"
	"runtime"
	"time"

	"github.com/discov-go/discov/test/bench/internal/results"
)

// A Registrar makes registrations in a child process.
type Registrar struct {
	job  Job
	kind kind
}

// A Job is what a Registrar is to make.
type Job struct {
	Kind     string
	Size     int
	Shape    string
	AtOnce   int
	Endpoint string
}

// A Cost is what something took.
type Cost struct {
	Wall, CPU time.Duration
}

// A Footprint is what a process holds.
type Footprint struct {
	Bytes      int64 // heap and stacks in use
	Goroutines int
}

// Register makes all registrations, and returns when the last is made.
func (r *Registrar) Register(job Job, cost *Cost) error {
	began := time.Now()
	before, err := cpuTime()
	if err != nil {
		return err
	}
	kind, err := newKind(job.Kind, job.Endpoint, job.Size)
	if err != nil {
		return err
	}
	r.job, r.kind = job, kind
	if err := r.registerAll(began); err != nil {
		return err
	}
	cost.Wall = time.Since(began)
	after, err := cpuTime()
	cost.CPU = after - before
	return err
}

func (r *Registrar) registerAll(began time.Time) error {
	var pace time.Duration // from a start to the next
	if r.job.Shape == results.Spread {
		pace = ttl * time.Second / 3 / time.Duration(r.job.Size)
	}
	return each(r.job.Size, r.job.AtOnce, func(i int) error {
		time.Sleep(time.Until(began.Add(time.Duration(i) * pace)))
		if err := r.kind.register(i); err != nil {
			return fmt.Errorf("registration %d of %d: %w", i+1, r.job.Size, err)
		}
		return nil
	})
}

// Footprint returns what the process holds after a garbage collection.
func (*Registrar) Footprint(_ struct{}, f *Footprint) error { //nolint:unparam // net/rpc wants an error
	// A pool lets go in two collections.
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	f.Bytes = int64(m.HeapInuse + m.StackInuse)
	f.Goroutines = runtime.NumGoroutine()
	return nil
}

// Stop stops all registrations.
func (r *Registrar) Stop(struct{}, *struct{}) error {
	return r.kind.stop(r.job.AtOnce)
}
