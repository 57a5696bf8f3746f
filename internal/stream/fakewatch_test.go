package stream

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcd"
	"github.com/discov-go/discov/internal/grpctest"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
)

// watchServer is an etcd whose watches are served as serve says, stream by stream.
type watchServer struct {
	pb.UnimplementedWatchServer
	counted
	serve func(s *watched) error
}

// watched is one stream, as the server has it.
type watched struct {
	pb.Watch_WatchServer
	n int
}

// Watch implements pb.WatchServer.
func (e *watchServer) Watch(stream pb.Watch_WatchServer) error {
	n, leave := e.enter()
	defer leave()
	return e.serve(&watched{stream, n})
}

// creation returns the next request, which must be for a new watch.
func (s *watched) creation() (*pb.WatchCreateRequest, error) {
	r, err := s.Recv()
	if err != nil {
		return nil, err
	}
	if r.GetCreateRequest() == nil {
		return nil, fmt.Errorf("it is no creation: %v", r)
	}
	return r.GetCreateRequest(), nil
}

// send sends a response, with the header that all have.
func (s *watched) send(r *pb.WatchResponse) error {
	r.Header = &pb.ResponseHeader{Revision: testRev}
	return s.Send(r)
}

func (s *watched) created(id int64) error {
	return s.send(&pb.WatchResponse{WatchId: id, Created: true})
}

// refuse answers a creation.
func (s *watched) refuse(id int64, reason string) error {
	return s.send(&pb.WatchResponse{WatchId: id, Created: true, Canceled: true, CancelReason: reason})
}

func (s *watched) put(id int64, key, value string) error {
	kv := &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), Lease: 7, ModRevision: testRev}
	return s.send(&pb.WatchResponse{WatchId: id, Events: []*mvccpb.Event{{Type: mvccpb.Event_PUT, Kv: kv}}})
}

func (s *watched) remove(id int64, key string) error {
	kv := &mvccpb.KeyValue{Key: []byte(key), ModRevision: testRev + 1}
	return s.send(&pb.WatchResponse{WatchId: id, Events: []*mvccpb.Event{{Type: mvccpb.Event_DELETE, Kv: kv}}})
}

// drain reads on until the stream ends.
func (s *watched) drain() error {
	for {
		if _, err := s.Recv(); err != nil {
			return err
		}
	}
}

// likeEtcd creates each watch with the ID that was asked for, and tells it a change of its key at once. It cancels those
// that it is asked to.
func likeEtcd(s *watched) error {
	for {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		if cancel := r.GetCancelRequest(); cancel != nil {
			err = s.send(&pb.WatchResponse{WatchId: cancel.GetWatchId(), Canceled: true})
		} else {
			one := r.GetCreateRequest()
			if err = s.created(one.GetWatchId()); err == nil {
				err = s.put(one.GetWatchId(), string(one.GetKey()), "hello "+string(one.GetKey()))
			}
		}
		if err != nil {
			return err
		}
	}
}

// listener notes what it is told.
type listener struct {
	key string

	mu    sync.Mutex
	told  []string // values, and "" where the key went
	ended []error
	done  bool // whether nothing may be told any more
	late  int  // how much was
}

// Key implements Listener.
func (l *listener) Key() string { return l.key }

// Tell implements Listener.
func (l *listener) Tell(now etcd.Entry, _ int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told = append(l.told, now.Value)
	if l.done {
		l.late++
	}
}

// End implements Listener.
func (l *listener) End(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = append(l.ended, err)
	if l.done {
		l.late++
	}
}

// finish notes that nothing may be told from now on.
func (l *listener) finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done = true
}

// heard returns what it was told.
func (l *listener) heard() (told []string, ended []error, late int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string{}, l.told...), append([]error{}, l.ended...), l.late
}

// requireTold requires that a listener was told this, and that its watch goes on.
func (l *listener) requireTold(t *testing.T, want ...string) {
	t.Helper()
	told, ended, _ := l.heard()
	if fmt.Sprint(told) != fmt.Sprint(want) || len(ended) > 0 {
		t.Fatalf("it was told %q and ended %v, want %q", told, ended, want)
	}
}

// requireEnded requires that a listener was told, once, that its watch has ended, and returns why.
func (l *listener) requireEnded(t *testing.T) error {
	t.Helper()
	_, ended, _ := l.heard()
	if len(ended) != 1 {
		t.Fatalf("it ended %v, want once", ended)
	}
	return ended[0]
}

// watches are those of a link to the server, each way of which takes latency.
type watches struct {
	*Watches
	pulse *Pulse
	leave context.CancelFunc
}

func newWatches(t *testing.T, server *watchServer, latency time.Duration) *watches {
	t.Helper()
	cc := grpctest.Serve(t, latency, func(s *grpc.Server) { pb.RegisterWatchServer(s, server) })
	ctx, leave := context.WithCancel(context.Background())
	ws := &watches{pulse: &Pulse{}, leave: leave}
	ws.Watches = NewWatches(ctx, cc, ws.pulse, func(rev int64) {
		if rev != testRev {
			t.Errorf("heard of revision %d", rev)
		}
	})
	t.Cleanup(func() {
		leave()
		ws.Wait()
	})
	return ws
}

// listen watches a key.
func (ws *watches) listen(key string) (l *listener, cancel func()) {
	l = &listener{key: key}
	w := ws.Watch(testRev, l)
	return l, func() {
		w.Cancel()
		l.finish()
	}
}
