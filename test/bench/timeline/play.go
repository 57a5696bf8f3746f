package main

import (
	"log/slog"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	gozero "github.com/zeromicro/go-zero/core/discov"
	"github.com/zeromicro/go-zero/core/logx"
)

const value = "10.0.0.7:8080"

// A part of a timeline, in time since its begin.
type part struct{ from, to time.Duration }

// A fault is what was broken.
type fault struct {
	part
	name string
	// down is whether etcd did not run meanwhile, so that nobody could look.
	down bool
}

// A row is one publisher.
type row struct {
	name   string
	absent []part
}

// A timeline is what happened in a run.
type timeline struct {
	lasts  time.Duration
	faults []fault
	rows   []row
}

// A stage is one publisher, and the path to etcd that it has to itself.
type stage struct {
	name, key string
	path      *etcdtest.Path
	start     func(endpoints []string) error
}

func stages(ttl time.Duration) []*stage {
	return []*stage{
		{name: "go-zero", key: "go-zero/1", start: func(endpoints []string) error {
			logx.Disable()
			return gozero.NewPublisher(endpoints, "go-zero", value, gozero.WithId(1)).KeepAlive()
		}},
		{name: "discov", key: "discov/1", start: func(endpoints []string) error {
			silent := discov.WithLogger(slog.New(slog.DiscardHandler))
			return discov.NewPublisher(endpoints, "discov", value, discov.WithId(1), discov.WithTTL(ttl), silent).KeepAlive()
		}},
	}
}

// play plays the faults, one after another.
func play(pace time.Duration) timeline {
	var program etcdtest.Program
	defer program.End()
	etcd := etcdtest.StartProcess(&program)
	observer := etcdtest.Observe(&program, etcd, "")
	all := stages(pace)
	for _, s := range all {
		s.path = etcdtest.NewPath(&program, etcd.Endpoints()[0])
		if err := s.start([]string{s.path.Endpoint()}); err != nil {
			program.Fatalf("%s: %v", s.name, err)
		}
	}
	began := time.Now()
	var line timeline
	happens := func(name string, down bool, lasts time.Duration, begin, end func()) {
		time.Sleep(pace)
		f := fault{name: name, down: down}
		f.from = time.Since(began)
		begin()
		time.Sleep(lasts)
		end()
		f.to = time.Since(began)
		line.faults = append(line.faults, f)
	}
	happens("etcd is down", true, 2*pace, etcd.Kill, etcd.Start)
	time.Sleep(pace)
	happens("etcd is wiped", false, pace/2, etcd.Wipe, func() {})
	time.Sleep(pace)
	happens("the connections go silent; new ones work", false, 3*pace, func() {
		for _, s := range all {
			s.path.DeafenCurrent()
		}
	}, func() {})
	line.lasts = time.Since(began)
	for _, s := range all {
		line.rows = append(line.rows, row{s.name, absences(observer, s.key, began, line.lasts)})
	}
	return line
}

// absences are the parts in which a key was not there.
func absences(observer *etcdtest.Observer, key string, began time.Time, lasts time.Duration) (parts []part) {
	for _, a := range observer.Absences(key) {
		p := part{max(0, a.From.Sub(began)), lasts}
		if !a.To.IsZero() {
			p.to = min(lasts, a.To.Sub(began))
		}
		if p.from < p.to {
			parts = append(parts, p)
		}
	}
	return parts
}
