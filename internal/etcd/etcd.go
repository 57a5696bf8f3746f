// Package etcd has the words in which the rest of the library speaks with etcd: keys, writes, watchers, and errors in plain
// language.
package etcd

import clientv3 "go.etcd.io/etcd/client/v3"

// An Entry is a key as etcd holds it; the zero Entry is a key that is not there.
type Entry struct {
	Value string
	Lease clientv3.LeaseID
	// Rev is the revision of the last write, zero where the key is not there.
	Rev int64
}

// Exists reports whether the key is there.
func (e Entry) Exists() bool { return e.Rev != 0 }

// A Write is what is to be written to a key.
type Write struct {
	Key, Value string
	Lease      clientv3.LeaseID
	// Outdated reports whether there is a newer value meanwhile. A write that has waited for a connection is not sent then,
	// but fails with ErrOutdated.
	Outdated func() bool
}
