package discov

import (
	"context"
	"errors"
	"sync"

	"github.com/discov-go/discov/internal/etcd"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
)

// watches serves all watchers of a link over one stream.
//
// The client's own Watcher creates watches one after the other, each after the answer to the one before: a second per
// hundred at a round trip of 10 ms. It also resumes from an old revision by itself, which sleeps for ever once the
// cluster was wiped, and uses an expired token for ever. Here the requests are sent without waiting, and a stream that
// ends ends its watchers.
type watches struct {
	link *link

	mu  sync.Mutex
	cur *watchStream // nil where nobody watches
}

// watchStream is one stream, from its opening to its end.
type watchStream struct {
	link   *link
	ctx    context.Context
	cancel context.CancelFunc
	wake   chan struct{} // holds one token when unsent has grown

	mu       sync.Mutex
	ended    bool
	users    int
	unsent   []*pb.WatchRequest
	creating []*watch // asked for; etcd answers in this order
	live     map[int64]*watch
}

// watch is a watcher and where it stands on its stream.
type watch struct {
	*etcd.Watcher
	start  int64 // the revision to watch from
	id     int64 // etcd's, once created
	closed bool
}

// watch asks for a watch of the key from revision rev on.
func (ws *watches) watch(key string, rev int64) *etcd.Watcher {
	request := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{Key: []byte(key), StartRevision: rev},
	}}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.cur != nil {
		if w := ws.cur.create(request); w != nil {
			return w
		}
	}
	ws.cur = newWatchStream(ws.link)
	w := ws.cur.create(request)
	go ws.cur.run()
	return w
}

func newWatchStream(l *link) *watchStream {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(l.left))
	l.streams.Add(1)
	return &watchStream{link: l, ctx: ctx, cancel: cancel, wake: make(chan struct{}, 1), live: map[int64]*watch{}}
}

// create queues the request, and returns nil where the stream has ended.
func (s *watchStream) create(request *pb.WatchRequest) *etcd.Watcher {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	w := &watch{start: request.GetCreateRequest().GetStartRevision()}
	w.Watcher = etcd.NewWatcher(func() { s.close(w) })
	s.users++
	s.creating = append(s.creating, w)
	s.sendLocked(request)
	return w.Watcher
}

// close cancels a watch, and the stream with its last one.
func (s *watchStream) close(w *watch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.closed || s.ended {
		return
	}
	w.closed = true
	s.users--
	if s.users == 0 {
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
	defer s.link.streams.Done()
	err := s.converse()
	s.cancel()
	s.end(etcd.Plain(err))
}

func (s *watchStream) converse() error {
	if err := s.link.account.ensure(s.ctx); err != nil {
		return err
	}
	used := s.link.account.inUse()
	defer context.AfterFunc(used.hangs, s.cancel)()
	stream, err := s.link.watch.Watch(s.ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	s.link.streams.Go(func() { s.send(stream) })
	for {
		response, err := stream.Recv()
		if err == nil {
			err = s.hear(response)
		}
		if err != nil {
			s.link.account.reject(used, err)
			return err
		}
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
	}
}

func (s *watchStream) takeUnsent() []*pb.WatchRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	unsent := s.unsent
	s.unsent = nil
	return unsent
}

// hear passes a response on, and returns an error where it means that the whole stream is of no use: its token.
func (s *watchStream) hear(response *pb.WatchResponse) error {
	s.link.noteAnswer()
	s.mu.Lock()
	defer s.mu.Unlock()
	if response.GetCreated() {
		return s.createdLocked(response)
	}
	w := s.live[response.GetWatchId()]
	if w == nil {
		return nil
	}
	if response.GetCanceled() {
		delete(s.live, w.id)
		w.End(etcd.CancelReason(response))
		return nil
	}
	for _, event := range response.GetEvents() {
		w.Tell(etcd.EntryAfter(event), event.GetKv().GetModRevision())
	}
	return nil
}

func (s *watchStream) createdLocked(response *pb.WatchResponse) error {
	if len(s.creating) == 0 {
		return errors.New("a watch was created that nobody asked for")
	}
	if response.GetCanceled() {
		if reason := etcd.CancelReason(response); etcd.IsTokenError(reason) {
			return reason
		}
	}
	w := s.creating[0]
	s.creating = s.creating[1:]
	w.id = response.GetWatchId()
	switch {
	case response.GetCanceled():
		w.End(etcd.CancelReason(response))
	case w.closed:
		s.cancelLocked(w.id)
	case response.GetHeader().GetRevision() < w.start-1:
		// etcd was wiped or restored since the key was read. It would be silent until it is at that revision again.
		s.cancelLocked(w.id)
		w.End(etcd.ErrWentBack)
	default:
		s.live[w.id] = w
	}
	return nil
}

// end tells every watcher that it has ended.
func (s *watchStream) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, w := range s.creating {
		w.End(err)
	}
	for _, w := range s.live {
		w.End(err)
	}
	s.creating, s.live, s.unsent = nil, nil, nil
}
