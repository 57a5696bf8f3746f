// Package conn is a connection to etcd that outlives its links: one that stalls is replaced under its users. It makes their
// requests, keeps their leases alive, and watches their keys.
package conn

import "time"

// The settings of the library's clients, where gRPC's and the client's own lose registrations.
const (
	// reconnectLeast and reconnectMost bound gRPC's pause between two tries to connect, which grows to two minutes by
	// default: after a long outage the way back would take as long.
	reconnectLeast = 100 * time.Millisecond
	reconnectMost  = time.Second
	// patientConnect and briskConnect bound one try to connect. A brisk link notices within a second that a path
	// which swallowed its first packets has healed; a patient one gets through where a handshake takes seconds. A
	// connection in doubt is given a spare of either kind.
	patientConnect = 20 * time.Second
	briskConnect   = 400 * time.Millisecond
	// briskReconnectMost is a brisk link's own reconnectMost: its tries are paced by their bound already.
	briskReconnectMost = 300 * time.Millisecond
	// pingAfter and pingTimeout notice a dead connection under an idle stream; gRPC raises less than 10 s.
	pingAfter   = 10 * time.Second
	pingTimeout = 3 * time.Second
)

// The settings of requests.
const (
	// askAgain is how long a request has no answer at least until it is made again, and twice as long each time: half of the
	// second in which a key is to be back (because: what is asked of an etcd that elects its leader may be lost).
	askAgain = 500 * time.Millisecond
	// queueAtLeast is within which time etcd answers something where a request only waits for its turn.
	queueAtLeast = time.Second
	// outlastLeast is for how long at least a grant is waited for that was cancelled.
	outlastLeast = time.Second
	// longestWait bounds a wait for a connection, which costs nothing and ends as soon as there is one.
	longestWait = 20 * time.Second
	// lookAfterLeast is how often a link looks after its requests at most.
	lookAfterLeast = 20 * time.Millisecond
	// causeFor is how long it is not found out anew why there is no connection, and how long that takes at most.
	causeFor = 100 * time.Millisecond
)

// The settings of a link in doubt.
const (
	// probeTimeout bounds one question to a spare, where round trips are not known to be longer.
	probeTimeout = 2 * time.Second
	// acquittal is how long a link that answered is not put in doubt again.
	acquittal = 2 * time.Second
	// The question to a link has spareAfterLeast, or as long as a round trip takes, up to spareAfterMost, until spares are
	// dialled (because: an etcd with round trips of 1.5 s was dialled 51 times in a minute).
	spareAfterLeast = 20 * time.Millisecond
	spareAfterMost  = time.Second
	// headStart is how much later than its spare a link that is not silent may answer and be kept: to move costs all that
	// is under way, which an etcd with too much to do cannot afford. A silent one has as long as the spare's answer took, if
	// that is less. The patient spare has the same over the brisk one, which wins only where the patient one is stuck
	// (because: a brisk one that won was so for life, and gave each try to connect 0.4 s). One that has won and cannot
	// connect is in doubt as any other, and gets a patient spare.
	headStart = 500 * time.Millisecond
	// loginHeadStart is how many times as long as its spare's answer a link may take that has a login under way, which would
	// have to be made again: an etcd with many logins is slow for everybody (because: 60 processes that logged in after a
	// restart never came back, for each gave up its login for that of a spare). It is no longer than that on a silent link
	// (because: one that went deaf with a login under way kept keys of a wiped etcd away for 1.7 s).
	loginHeadStart = 4
)

// The settings of what a connection does for all its users at once.
const (
	// A lease is renewed at each beat, of which its TTL has beatsPerTTL: a third of it, as the client does, leaves two more
	// tries.
	beatsPerTTL = 3
	// A beat whose answers take longer than its TTL has patienceShare-ths, up to mostPatience, puts the link in doubt.
	patienceShare = 8
	mostPatience  = 1250 * time.Millisecond
	// auditEvery is how often the keys that are watched are read, jittered, in case that a watch missed something, and
	// auditBatch how many in one request: etcd takes 128 by default.
	auditEvery = 30 * time.Second
	auditBatch = 100
	// auditTimeout bounds one request of an audit, and of a look at etcd's revision.
	auditTimeout = 5 * time.Second
	// historyEvery is how often it is found out at most whether etcd's revision went back.
	historyEvery = time.Second
)
