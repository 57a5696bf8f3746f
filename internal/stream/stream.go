// Package stream renews leases and watches keys over the streams of one link to etcd, and knows how quickly etcd answers.
package stream

import "time"

const (
	// A request without an answer for busyAfter means that etcd is slow: others go over other streams.
	busyAfter = 100 * time.Millisecond
	// mostStreams is how many there are at most, and streamsKept how long they are kept when they are not needed any more
	// (because: a follower that limps is slow now and then, and 28 streams were opened in 20 s).
	mostStreams = 8
	streamsKept = 30 * time.Second
	// chunk is how many renewals are sent at once: what waits on one stream waits for all before it, and a follower asks the
	// leader for each (because: 10,000 at once cost etcd 4.7 % of a core, not 5.1, but over a follower that takes 1 ms for each
	// they take ten seconds).
	chunk = 512
	// gather is how long requests of watches wait for others after some were sent, to go out together: a packet of its own
	// costs many times as much, on both sides. The first one does not wait (because: etcd tells of a change from before the
	// watch up to 100 ms later than of one after it).
	gather = 10 * time.Millisecond
	// Where they come in that time at burstRate a second, many Publishers start at once: then they wait for gatherBurst more, and
	// again while they come at that rate, mostGathers times at most (because: in a burst the watches were a tenth of the time
	// that KeepAlive took, and nobody waits for them). What happens to a key meanwhile, the watch tells once it is there.
	burstRate   = 800
	gatherBurst = 90 * time.Millisecond
	mostGathers = 50
	// askAgain is how long a request has no answer at least until it is made again, twice as long each time, up to
	// maxRepeats times.
	askAgain   = time.Second
	maxRepeats = 4
)
