package conn

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// history knows etcd's revision, to notice that it was wiped or restored. Only what is linearizable tells it for sure: a
// member that lags behind names an older one in other answers.
type history struct {
	rev atomic.Int64 // the latest that is known for sure

	mu    sync.Mutex
	asked time.Time // when it was found out last
}

func (h *history) latest() int64 { return h.rev.Load() }

// note takes the revision of a linearizable answer to a request that was made when the latest one was before. It reports
// whether etcd went back.
func (h *history) note(before, rev int64) (wentBack bool) {
	for {
		latest := h.rev.Load()
		wentBack = rev < before && latest >= before
		if !wentBack && rev <= latest {
			return false
		}
		if h.rev.CompareAndSwap(latest, rev) {
			return wentBack
		}
	}
}

// turn reports whether it is to be found out again.
func (h *history) turn() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.asked) < historyEvery {
		return false
	}
	h.asked = time.Now()
	return true
}

// heard takes the revision that any answer names.
func (c *Conn) heard(rev int64) {
	if rev != 0 && rev < c.history.latest() && c.history.turn() {
		c.run(c.lookBack)
	}
}

// lookBack finds out whether etcd went back: it asks for its revision, with a transaction of nothing, for which no
// permission is needed.
func (c *Conn) lookBack() {
	ctx, cancel := context.WithTimeout(c.ctx, auditTimeout)
	defer cancel()
	_, _ = truly(ctx, c.own, func(ctx context.Context, l *link) (*pb.TxnResponse, error) {
		return l.kv.Txn(ctx, &pb.TxnRequest{}, grpc.WaitForReady(true))
	}) // what it tells is noted; where there is no answer, another is heard soon
}

// note takes the revision of a linearizable answer, and tells all users where etcd went back.
func (c *Conn) note(before, rev int64) {
	if c.history.note(before, rev) {
		c.beats.wentBack()
	}
}
