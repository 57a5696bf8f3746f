package etcdtest

import (
	"context"
	"encoding/json"
	"maps"
	"net/http"
	"path"
	"strings"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/stats"
)

// counts is what one server has seen of its clients, this package's own left out. etcd's metrics can't say it: they
// belong to the process, not to one of the members in it.
type counts struct {
	Requests    map[string]int // since the start
	Streams     map[string]int // open now
	Watchers    int            // created and neither cancelled nor cut off
	Connections int            // open now
}

// counter is the stats.Handler of one server that keeps its counts.
type counter struct {
	mu       sync.Mutex
	requests map[string]int
	streams  map[string]int
	watchers int
	conns    map[*conn]bool // true where it is known to be our own
}

type conn struct{ _ byte } // not empty: each needs an address of its own

// rpc is one call as the counter sees it.
type rpc struct {
	method   string
	ours     bool
	stream   bool           // written by Begin, before any other event
	watchers map[int64]bool // by ID; counter.mu
}

type (
	connKey struct{}
	rpcKey  struct{}
)

func newCounter() *counter {
	return &counter{requests: map[string]int{}, streams: map[string]int{}, conns: map[*conn]bool{}}
}

func (c *counter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return context.WithValue(ctx, connKey{}, new(conn))
}

func (c *counter) HandleConn(ctx context.Context, s stats.ConnStats) {
	cn := ctx.Value(connKey{}).(*conn)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch s.(type) {
	case *stats.ConnBegin:
		c.conns[cn] = false
	case *stats.ConnEnd:
		delete(c.conns, cn)
	}
}

func (c *counter) TagRPC(ctx context.Context, info *stats.RPCTagInfo) context.Context {
	r := &rpc{method: path.Base(info.FullMethodName), watchers: map[int64]bool{}}
	md, _ := metadata.FromIncomingContext(ctx)
	for _, agent := range md.Get("user-agent") {
		r.ours = r.ours || strings.HasPrefix(agent, userAgent+" ")
	}
	if cn, ok := ctx.Value(connKey{}).(*conn); ok && r.ours {
		c.mu.Lock()
		c.conns[cn] = true
		c.mu.Unlock()
	}
	return context.WithValue(ctx, rpcKey{}, r)
}

func (c *counter) HandleRPC(ctx context.Context, s stats.RPCStats) {
	r := ctx.Value(rpcKey{}).(*rpc)
	if r.ours {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch s := s.(type) {
	case *stats.Begin:
		c.requests[r.method]++
		if r.stream = s.IsClientStream || s.IsServerStream; r.stream {
			c.streams[r.method]++
		}
	case *stats.InPayload:
		if !r.stream {
			return
		}
		c.requests[r.method+".msg"]++
		if w, ok := s.Payload.(*pb.WatchRequest); ok {
			switch {
			case w.GetCreateRequest() != nil:
				c.requests["Watch.create"]++
			case w.GetCancelRequest() != nil:
				c.requests["Watch.cancel"]++
			}
		}
	case *stats.OutPayload:
		w, ok := s.Payload.(*pb.WatchResponse)
		switch {
		case !ok:
		case w.Canceled:
			if r.watchers[w.WatchId] {
				delete(r.watchers, w.WatchId)
				c.watchers--
			}
		case w.Created:
			r.watchers[w.WatchId] = true
			c.watchers++
		}
	case *stats.End:
		if r.stream {
			c.streams[r.method]--
		}
		c.watchers -= len(r.watchers)
		clear(r.watchers)
	}
}

func (c *counter) now() counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := counts{Requests: maps.Clone(c.requests), Streams: maps.Clone(c.streams), Watchers: c.watchers}
	for _, ours := range c.conns {
		if !ours {
			n.Connections++
		}
	}
	return n
}

// ServeHTTP answers with the counts, for the parent of a child process.
func (c *counter) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	json.NewEncoder(w).Encode(c.now())
}

// countsPath is where a child tells its counts.
const countsPath = "/etcdtest/counts"
