package discov

import (
	"cmp"
	"context"
	"fmt"
	"time"
)

// HealthPolicy says how often a health check is called and what follows from its results. Fields that are zero have their
// defaults.
type HealthPolicy struct {
	// Interval is the time between two checks, which is jittered. Defaults to 5 s.
	Interval time.Duration
	// Timeout is how long a check may take. Defaults to 1 s.
	Timeout time.Duration
	// Failures is how many checks have to fail in a row until the key is withdrawn. Defaults to 3.
	Failures int
	// Successes is how many checks have to succeed in a row until it is published again. Defaults to 2.
	Successes int
}

func (h HealthPolicy) withDefaults() HealthPolicy {
	return HealthPolicy{
		Interval:  cmp.Or(h.Interval, 5*time.Second),
		Timeout:   cmp.Or(h.Timeout, time.Second),
		Failures:  cmp.Or(h.Failures, 3),
		Successes: cmp.Or(h.Successes, 2),
	}
}

// wrong returns what is wrong with the policy.
func (h HealthPolicy) wrong() (errs []error) {
	for _, field := range []struct {
		name  string
		value int64
		text  any
	}{
		{"Interval", int64(h.Interval), h.Interval},
		{"Timeout", int64(h.Timeout), h.Timeout},
		{"Failures", int64(h.Failures), h.Failures},
		{"Successes", int64(h.Successes), h.Successes},
	} {
		if field.value < 0 {
			errs = append(errs, fmt.Errorf("%s is %v: want zero or more", field.name, field.text))
		}
	}
	return errs
}

// healthCheck is what the user has given.
type healthCheck struct {
	check  func(context.Context) error
	policy HealthPolicy
}
