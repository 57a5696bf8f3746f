package etcd

// A Bell wakes one goroutine, whatever there is to look at: several may ring the same one. It holds one ring. A nil Bell
// is heard by nobody.
type Bell chan struct{}

// NewBell returns a Bell that has not been rung.
func NewBell() Bell { return make(Bell, 1) }

// Ring rings the bell. It does not wait.
func (b Bell) Ring() {
	select {
	case b <- struct{}{}:
	default:
	}
}
