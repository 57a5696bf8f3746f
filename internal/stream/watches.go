package stream

import (
	"context"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/discov-go/discov/internal/backoff"
	"github.com/discov-go/discov/internal/etcd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// A Listener hears of one key. Its methods must not block, nor call the Watches.
type Listener interface {
	// Key returns the key, always the same.
	Key() string
	// Tell is called with the key as a change at revision rev has left it.
	Tell(now etcd.Entry, rev int64)
	// End is called once, when the watch has ended by itself.
	End(err error)
}

// Watches serves all watches of a link over one stream.
//
// The client's own Watcher creates watches one after the other, each after the answer to the one before: a second per
// hundred at a round trip of 10 ms. It also resumes from an old revision by itself, which sleeps for ever once the
// cluster was wiped, and uses an expired token for ever. Here the requests are sent without waiting, and a stream that
// ends ends its watches.
type Watches struct {
	ctx    context.Context // done when the link is left
	client pb.WatchClient
	pulse  *Pulse
	heard  func(rev int64)

	running sync.WaitGroup

	mu  sync.Mutex
	cur *watchStream // nil where nobody watches
}

// NewWatches returns the Watches of the link that cc connects, until ctx is done. Each answer's revision goes to heard.
func NewWatches(ctx context.Context, cc grpc.ClientConnInterface, pulse *Pulse, heard func(rev int64)) *Watches {
	return &Watches{ctx: clientv3.WithRequireLeader(ctx), client: pb.NewWatchClient(cc), pulse: pulse, heard: heard}
}

// Wait waits until all goroutines have ended. ctx must be done.
func (ws *Watches) Wait() { ws.running.Wait() }

// Watch asks for a watch of the listener's key from revision rev on. It does not wait for it.
func (ws *Watches) Watch(rev int64, listener Listener) *Watch {
	w := &Watch{listener: listener}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.cur == nil || !ws.cur.create(w, rev) {
		ws.cur = newWatchStream(ws)
		ws.cur.create(w, rev)
		ws.running.Go(ws.cur.run)
	}
	return w
}

// A Watch is of one key, on one stream.
type Watch struct {
	listener Listener
	on       *watchStream
	id       int64
	closed   bool
}

// Cancel ends the watch. Once it has returned, nothing is told any more.
func (w *Watch) Cancel() { w.on.close(w) }

// firstID is the ID that the first watch of a stream asks for, and the next ones follow. etcd gives it; its grpc-proxy counts
// from zero on instead.
const firstID = int64(1) << 32

// watchStream is one stream, from its opening to its end.
type watchStream struct {
	of     *Watches
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // holds one token when unsent has grown

	mu     sync.Mutex
	ended  bool
	nextID int64
	unsent []*pb.WatchRequest
	open   int              // how many watches are not closed
	asked  []*Watch         // that etcd has not told to be created, in the order in which it was asked
	live   map[int64]*Watch // by the ID that etcd names them with
}

func newWatchStream(of *Watches) *watchStream {
	s := &watchStream{of: of, wake: make(chan struct{}, 1), nextID: firstID, live: map[int64]*Watch{}}
	s.ctx, s.cancel = context.WithCancel(of.ctx)
	return s
}

// create queues the request for a watch from revision rev on, and returns false if the stream has ended.
func (s *watchStream) create(w *Watch, rev int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	w.on, w.id = s, s.nextID
	s.nextID++
	s.asked = append(s.asked, w)
	s.open++
	s.sendLocked(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{Key: []byte(w.listener.Key()), StartRevision: rev, WatchId: w.id},
	}})
	return true
}

// close cancels a watch, and the stream with its last one.
func (s *watchStream) close(w *Watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.closed || s.ended {
		w.closed = true
		return
	}
	w.closed = true
	if s.open--; s.open == 0 {
		s.ended = true
		s.cancel()
		return
	}
	if s.live[w.id] == w {
		delete(s.live, w.id)
		s.cancelLocked(w.id)
	}
}

func (s *watchStream) cancelLocked(id int64) {
	s.sendLocked(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{
		CancelRequest: &pb.WatchCancelRequest{WatchId: id},
	}})
}

func (s *watchStream) sendLocked(request *pb.WatchRequest) {
	s.unsent = append(s.unsent, request)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run is the life of the stream.
func (s *watchStream) run() {
	err := s.converse()
	s.cancel()
	s.end(etcd.Plain(err))
}

func (s *watchStream) converse() error {
	stream, err := s.of.client.Watch(s.ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	s.of.running.Go(func() { s.send(stream) })
	for {
		response, err := stream.Recv()
		if err != nil {
			return err
		}
		s.hear(response)
	}
}

func (s *watchStream) send(stream pb.Watch_WatchClient) {
	for {
		select {
		case <-s.wake:
		case <-s.ctx.Done():
			return
		}
		for _, request := range s.takeUnsent() {
			if err := stream.Send(request); err != nil {
				return // the receiving side hears why
			}
		}
		s.gather()
	}
}

// gather waits for requests to come, and for longer while many watches are asked for.
func (s *watchStream) gather() {
	pause := gather
	for range 1 + mostGathers {
		before := s.created()
		backoff.Pause(s.ctx, pause)
		if s.created()-before < int64(burstRate*pause/time.Second) {
			return
		}
		pause = gatherBurst
	}
}

// created returns how many watches were asked for.
func (s *watchStream) created() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nextID - firstID
}

func (s *watchStream) takeUnsent() []*pb.WatchRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	unsent := s.unsent
	s.unsent = nil
	return unsent
}

// hear passes a response on.
func (s *watchStream) hear(response *pb.WatchResponse) {
	s.of.pulse.NoteAnswer()
	s.of.heard(response.GetHeader().GetRevision())
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case response.GetCreated():
		s.createdLocked(response)
	case response.GetCanceled():
		if w := s.live[response.GetWatchId()]; w != nil {
			s.endLocked(w, etcd.CancelReason(response))
		}
	default:
		s.tellLocked(response)
	}
}

// createdLocked takes the answer to a request.
func (s *watchStream) createdLocked(response *pb.WatchResponse) {
	w := s.takeAskedLocked(response.GetWatchId())
	switch {
	case w == nil:
	case response.GetCanceled():
		s.endLocked(w, etcd.CancelReason(response))
	case w.closed:
		s.cancelLocked(response.GetWatchId())
	default:
		w.id = response.GetWatchId()
		if twin := s.live[w.id]; twin != nil {
			s.endLocked(twin, etcd.ErrStreamEnded)
		}
		s.live[w.id] = w
	}
}

// takeAskedLocked returns the watch that an answer with this ID is for: the one with it, or, where a proxy gives IDs of its
// own, the one that was asked for at that place (because: it counts the requests in their order, but answers in any), or
// else the oldest one, until an event tells which key the ID stands for.
func (s *watchStream) takeAskedLocked(id int64) *Watch {
	if len(s.asked) == 0 {
		return nil
	}
	at := max(0, slices.IndexFunc(s.asked, func(w *Watch) bool { return w.id == id || w.id == firstID+id }))
	w := s.asked[at]
	copy(s.asked[1:at+1], s.asked[:at]) // none, where the answers come in order: with thousands, all others were too many
	s.asked[0] = nil
	if s.asked = s.asked[1:]; len(s.asked) == 0 {
		s.asked = nil // which may have been thousands
	}
	return w
}

// tellLocked passes events on to the watch of their key.
func (s *watchStream) tellLocked(response *pb.WatchResponse) {
	for _, event := range response.GetEvents() {
		if w := s.ofLocked(response.GetWatchId(), event); w != nil && !w.closed {
			w.listener.Tell(etcd.EntryAfter(event), event.GetKv().GetModRevision())
		}
	}
}

// ofLocked returns the watch that an event is for. Where the ID stands for another key (because: etcd's grpc-proxy answers
// out of order), the two watches exchange their IDs.
func (s *watchStream) ofLocked(id int64, event *mvccpb.Event) *Watch {
	key := string(event.GetKv().GetKey())
	named := s.live[id]
	if named == nil || named.listener.Key() == key {
		return named
	}
	for w := range s.allOpenLocked() {
		if w.listener.Key() != key {
			continue
		}
		s.live[id], named.id, w.id = w, w.id, id
		if at := slices.Index(s.asked, w); at >= 0 {
			s.asked[at] = named
		} else {
			s.live[named.id] = named
		}
		return w
	}
	return nil
}

// endLocked ends a watch by itself.
func (s *watchStream) endLocked(w *Watch, err error) {
	delete(s.live, w.id)
	if !w.closed {
		w.closed = true
		s.open--
		w.listener.End(err)
	}
}

// allOpenLocked are the watches that are not closed.
func (s *watchStream) allOpenLocked() iter.Seq[*Watch] {
	return func(yield func(*Watch) bool) {
		for _, w := range s.asked {
			if !w.closed && !yield(w) {
				return
			}
		}
		for _, w := range s.live {
			if !w.closed && !yield(w) {
				return
			}
		}
	}
}

// end tells every listener that its watch has ended.
func (s *watchStream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for w := range s.allOpenLocked() {
		s.endLocked(w, err)
	}
	s.asked, s.unsent = nil, nil
}
