package discov

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strconv"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// A Status, the Stats and an Event are the same kind of record in JSON and in the log: names in lower case, durations with their
// units, leases as text, since they exceed the integers of JSON's readers, and what is zero left out.

// record is the fields of one.
type record []slog.Attr

func (r *record) text(name, value string) {
	if value != "" {
		*r = append(*r, slog.String(name, value))
	}
}

func (r *record) lease(id clientv3.LeaseID) {
	if id != clientv3.NoLease {
		r.text("lease", strconv.FormatInt(int64(id), 10))
	}
}

func (r *record) time(name string, t time.Time) {
	if !t.IsZero() {
		*r = append(*r, slog.Time(name, t))
	}
}

func (r *record) duration(name string, d time.Duration) {
	if d != 0 {
		r.text(name, d.String())
	}
}

func (r *record) err(err error) {
	if err != nil {
		r.text("error", err.Error())
	}
}

// json returns the record as a JSON object, its fields in order.
func (r *record) json() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, field := range *r {
		value, err := json.Marshal(field.Value.Any())
		if err != nil {
			return nil, err
		}
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Quote(field.Key) + ":")
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func (r *record) log() slog.Value { return slog.GroupValue(*r...) }

func (s Status) record() *record {
	r := &record{slog.String("state", s.State.String())}
	r.time("since", s.Since)
	r.text("key", s.Key)
	r.text("value", s.Value)
	r.lease(s.Lease)
	r.duration("ttl", s.TTL)
	r.time("until", s.Until)
	r.err(s.Err)
	return r
}

// MarshalJSON returns an object with the fields state, since, key, value, lease, ttl, until and error. The lease is a decimal
// number in quotes, the TTL is like "10s", the times are in RFC 3339. Fields that are zero are left out.
func (s Status) MarshalJSON() ([]byte, error) { return s.record().json() }

// LogValue implements [slog.LogValuer], with the fields of MarshalJSON.
func (s Status) LogValue() slog.Value { return s.record().log() }

func (s Stats) record() *record {
	r := &record{
		slog.Int("registrations", s.Registrations),
		slog.Int("attempts", s.Attempts),
		slog.Int("failures", s.Failures),
		slog.Int("conflicts", s.Conflicts),
		slog.Any("losses", s.Losses),
	}
	r.time("last_renewal", s.LastRenewal)
	r.duration("last_registration", s.LastRegistration)
	return r
}

// MarshalJSON returns an object with the fields registrations, attempts, failures, conflicts, losses, an object by cause,
// last_renewal and last_registration, as Status.MarshalJSON does. Counters are there also where they are zero.
func (s Stats) MarshalJSON() ([]byte, error) { return s.record().json() }

// LogValue implements [slog.LogValuer], with the fields of MarshalJSON.
func (s Stats) LogValue() slog.Value { return s.record().log() }

func (e Event) record() *record {
	r := &record{}
	r.time("time", e.Time)
	r.text("from", e.From.String())
	r.text("to", e.To.String())
	r.text("key", e.Key)
	r.lease(e.Lease)
	if e.Cause != 0 {
		r.text("cause", e.Cause.String())
	}
	r.err(e.Err)
	return r
}

// MarshalJSON returns an object with the fields time, from, to, key, lease, cause and error, as Status.MarshalJSON does.
func (e Event) MarshalJSON() ([]byte, error) { return e.record().json() }

// LogValue implements [slog.LogValuer], with the fields of MarshalJSON.
func (e Event) LogValue() slog.Value { return e.record().log() }
