package etcd

import (
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A Keepalive is a lease that its connection renews. Its user reads the lease's clock when it likes to, and hears only of
// what has gone wrong. It is safe for concurrent use.
type Keepalive struct {
	ID clientv3.LeaseID
	// TTL is what etcd granted.
	TTL time.Duration
	// Bell is rung when something has gone wrong. It is set before the connection has the lease.
	Bell Bell

	mu sync.Mutex
	// until is when the lease ends at the soonest if nobody renews it, by our clock: counted from before the last request
	// that was answered. gone is when it ends at the latest: counted from the end of the last request, answered or not.
	until, gone time.Time
	asked       time.Time // when the last request was made that was answered
	underway    bool      // whether a request was sent that has no answer
	err         error     // what has gone wrong with the last renewal, nil where nothing has
	news        bool      // whether err was not taken yet
	wentBack    bool      // whether etcd went back, and nobody has taken that yet
}

// NewKeepalive returns a lease that etcd has just granted, answering a request made at asked.
func NewKeepalive(id clientv3.LeaseID, ttl time.Duration, asked time.Time) *Keepalive {
	k := &Keepalive{ID: id, TTL: ttl}
	k.asked, k.until, k.gone = asked, asked.Add(ttl), time.Now().Add(ttl)
	return k
}

// Until returns when the lease ends at the soonest if nobody renews it.
func (k *Keepalive) Until() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.until
}

// Asked returns when the last request was made that etcd answered by granting or renewing the lease.
func (k *Keepalive) Asked() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.asked
}

// Gone returns when the lease ends at the latest if nobody renews it from now on.
func (k *Keepalive) Gone() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.underway {
		return time.Now().Add(k.TTL)
	}
	return k.gone
}

// Take returns what has gone wrong since the last Take, nil where nothing has.
func (k *Keepalive) Take() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.news:
		k.news = false
		return k.err
	case k.wentBack:
		k.wentBack = false
		return ErrWentBack
	default:
		return nil
	}
}

// IsDenied reports whether etcd has refused the last renewal for want of a permission.
func (k *Keepalive) IsDenied() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return IsDenied(k.err)
}

// Sent notes that a renewal is under way.
func (k *Keepalive) Sent() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.underway = true
}

// Unheard notes that a renewal that was sent will have no answer: etcd may have renewed the lease until now.
func (k *Keepalive) Unheard() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.underway {
		k.underway, k.gone = false, time.Now().Add(k.TTL)
	}
}

// Renewed notes that etcd has renewed the lease, which has ttl from then on, answering a request made at sent. Through a
// proxy, ttl may be less than was granted.
func (k *Keepalive) Renewed(sent, answered time.Time, ttl time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.underway, k.err, k.news = false, nil, false
	k.asked, k.until, k.gone = sent, sent.Add(ttl), answered.Add(ttl)
}

// Fail notes what has gone wrong.
func (k *Keepalive) Fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if IsEtcdError(err) {
		k.underway = false
	}
	k.failLocked(err)
}

// Expire notes that the lease has ended for want of a renewal, if it has and nothing has gone wrong before.
func (k *Keepalive) Expire(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err == nil && !k.until.After(time.Now()) {
		k.failLocked(err)
	}
}

// WentBack notes that etcd was wiped or restored, whatever it says of the lease.
func (k *Keepalive) WentBack() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wentBack = true
	k.Bell.Ring()
}

func (k *Keepalive) failLocked(err error) {
	k.err, k.news = err, true
	k.Bell.Ring()
}

// IsRenewedSince reports whether etcd has renewed or granted the lease, answering a request made at t or later.
func (k *Keepalive) IsRenewedSince(t time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.asked.Before(t)
}
