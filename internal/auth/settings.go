package auth

import "time"

// The settings of an account, its token and its handshakes.
const (
	// A refused password is not tried again for one refusedShare-th of the time for which it has been refused, from
	// refusedLeast to refusedMost: each try costs etcd a bcrypt (60 ms), and a mistake that is mended soon is to be noticed
	// soon.
	refusedLeast = 300 * time.Millisecond
	refusedMost  = 10 * time.Second
	refusedShare = 20

	// loginTimeout bounds an Authenticate. It goes on when those who wait for it have given up: etcd does not stop its
	// bcrypt either, so that asking anew would keep an etcd with many logins busy for ever (because: 60 processes that
	// logged in after a restart, 0.3 s each, were not back after two minutes).
	loginTimeout = time.Minute

	// What has no answer for suspectAfter, or for as long as a round trip takes (because: with round trips of 1.5 s, each
	// answer cost two questions more), makes its token suspect. A token hangs when an answer with it comes later than
	// one without it, by hangsAfter or half the time of that. It is checked at most every suspectAgain.
	suspectAfter = 200 * time.Millisecond
	hangsAfter   = 300 * time.Millisecond
	suspectAgain = 500 * time.Millisecond

	// alertWait is how long to wait for an alert of TLS, which is there already if there is one.
	alertWait = 20 * time.Millisecond
)
