package conn

import (
	"context"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// history knows etcd's revision, to notice that it was wiped or restored. Only what is linearizable tells it for sure: a
// member that lags behind names an older one in other answers.
type history struct {
	wentBack func() // hears that etcd went back
	findOut  func() // finds out for sure whether it did

	mu    sync.Mutex
	rev   int64     // the latest that is known for sure
	asked time.Time // when it was found out last

	// recent is what it was at since, and old what it was at least historyEvery before.
	recent, old int64
	since       time.Time
}

func (h *history) latest() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rev
}

// note takes the revision of a linearizable answer to a request that was made when the latest one was before.
func (h *history) note(before, rev int64) {
	h.mu.Lock()
	wentBack := rev < before && h.rev >= before
	if wentBack {
		h.rev, h.recent, h.old = rev, rev, rev
	}
	h.rev = max(h.rev, rev)
	if now := time.Now(); now.Sub(h.since) >= historyEvery {
		h.old, h.recent, h.since = h.recent, h.rev, now
	}
	h.mu.Unlock()
	if wentBack {
		h.wentBack()
	}
}

// hear takes the revision of any answer, and returns true if it is to be found out now whether etcd went back: where it is
// older than what was known a while ago, and that was not asked just now. An answer that is older than the last one may have
// been on its way (because: a key that was updated again and again cost a question each second, for the event of the update
// before).
func (h *history) hear(rev int64) (find bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now, known := time.Now(), h.old
	if now.Sub(h.since) >= historyEvery {
		known = h.recent
	}
	if rev == 0 || rev >= known || now.Sub(h.asked) < historyEvery {
		return false
	}
	h.asked = now
	return true
}

// heard takes the revision that any answer on a stream names, and has it found out for sure where it is an older one.
func (h *history) heard(rev int64) {
	if h.hear(rev) {
		h.findOut()
	}
}

// lookOver asks for etcd's revision over a connection that may be one in a trial, and reports whether it is an older one
// than was known.
func (h *history) lookOver(ctx context.Context, cc *grpc.ClientConn) (bool, error) {
	known := h.latest()
	if known == 0 {
		return false, nil
	}
	answer, err := pb.NewKVClient(cc).Txn(metadata.NewOutgoingContext(ctx, headers), nothing(), grpc.WaitForReady(true))
	if err != nil {
		return false, err
	}
	now := answer.GetHeader().GetRevision()
	h.note(known, now)
	return now < known, nil
}
