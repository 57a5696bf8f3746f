// Bench measures registrations in etcd, of three kinds, side by side: with etcd's raw client, with go-zero's publisher
// and with discov's. Run it with make bench; absolute figures never fail it.
//
// # How
//
// A run registers so many distinct keys from one process, each with a lease of its own of 10 s. The process is a new one
// for each run, and so is its etcd, an embedded server without fsync, with etcd's own ticks. In each round the kinds take
// turns, and each round begins with another of them, so that a machine that changes pace does so for all.
//
//   - raw: one clientv3 client; Grant, Put, KeepAlive, and a goroutine per lease that drains its channel. It is the least
//     that a user can do, and repairs nothing.
//   - gozero: core/discov of go-zero, its logging disabled.
//   - discov: this library, its log discarded.
//
// Starts come in two shapes. In a burst they follow each other as quickly as they can, at most -at-once at a time. Spread
// is run at the smallest size alone: starts come evenly over a third of the TTL, as those of many services would, so that
// renewals that keep the times of their starts do not go out together.
//
// # The figures
//
// Each row of -out is one run, and each cell of the table the median of those that have the figure: of the brief ones for
// register and requests per registration, of the whole ones, one a round, for all else. A brief one, of a burst only, ends
// a second after the last start; there are four a round, since a burst of 1,000 takes a quarter of a second, and the next
// one differs by a third of that.
//
//   - register: from the first start to the last return, the connection's set-up included; and the CPU time of the process
//     in that window.
//   - requests per registration: what etcd counted until a second later, by gRPC method: calls, and the messages of
//     streams. The second is for what begins after a return, as raw's first renewals and go-zero's watches do.
//   - at rest: over -steady, from a second after the last start: the CPU of the process and that of etcd, in percent of a
//     core, less the same percentages before the first start (over a third of -steady), less what an idle process of this
//     program and an idle etcd beside them use more than at that time; the LeaseKeepAlive messages and the Range calls that
//     etcd counted. What is taken off is in the row.
//   - memory, goroutines: after that, the heap and the stacks in use after a garbage collection, and the goroutines, less
//     those from before the first start.
//   - back: another client revokes all leases, as quickly as -at-once allows; from its last answer until all keys are there
//     again, as a watch sees it. "never" (null in a row) is not within 30 s. Nobody waits for raw, which repairs nothing.
//   - stop: from the first Stop until the last has returned and no key is there. go-zero's returns at once and withdraws
//     later. Raw revokes each lease, -at-once at a time, and closes its client. "never" as above.
//   - left: 5 s later, the goroutines above those from before, and what etcd holds: leases, watchers, keys.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	runIfChild()
	s, err := parse(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		os.Exit(2) // parse has told
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = bench(ctx, s, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}
