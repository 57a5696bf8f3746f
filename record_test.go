package discov

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	yamlv3 "go.yaml.in/yaml/v3"
	yamlv4 "go.yaml.in/yaml/v4"
)

var (
	aMoment = time.Date(2026, 11, 25, 10, 20, 30, 0, time.UTC)
	aStatus = Status{
		State: StatePublished, Since: aMoment, Key: "user.rpc/7", Value: `"v"`, Lease: 1 << 60, TTL: 10 * time.Second,
		Until: aMoment.Add(10 * time.Second), Err: errors.New("oh dear"),
	}
	someStats = Stats{
		Registrations: 2, Attempts: 3, Failures: 1, Losses: map[Cause]int{CauseKeyDeleted: 1, CauseLeaseEnded: 0},
		LastRenewal: aMoment, LastRegistration: 12 * time.Millisecond,
	}
	anEvent = Event{
		Time: aMoment, From: StatePublished, To: StateRegistering, Key: "user.rpc/7", Lease: 1 << 60, Cause: CauseKeyDeleted,
		Err: errKeyGone,
	}
)

func TestStatusStatsAndEventsAreReadableJSON(t *testing.T) {
	for _, tried := range []struct {
		what any
		want string
	}{
		{aStatus, `{"state":"published","since":"2026-11-25T10:20:30Z","key":"user.rpc/7","value":"\"v\"",` +
			`"lease":"1152921504606846976","ttl":"10s","until":"2026-11-25T10:20:40Z","error":"oh dear"}`},
		{Status{}, `{"state":"idle"}`},
		{anEvent, `{"time":"2026-11-25T10:20:30Z","from":"published","to":"registering","key":"user.rpc/7",` +
			`"lease":"1152921504606846976","cause":"key_deleted","error":"the key was deleted"}`},
		{Event{}, `{"from":"idle","to":"idle"}`},
		{someStats, `{"registrations":2,"attempts":3,"failures":1,"conflicts":0,"losses":{"key_deleted":1,"lease_ended":0},` +
			`"last_renewal":"2026-11-25T10:20:30Z","last_registration":"12ms"}`},
		{Stats{}, `{"registrations":0,"attempts":0,"failures":0,"conflicts":0,"losses":null}`},
		{map[State]Cause{StateConflict: CauseStoreWentBack}, `{"conflict":"store_went_back"}`},
	} {
		written, err := json.Marshal(tried.what)
		require.NoError(t, err)
		require.Equal(t, tried.want, string(written))
	}
}

func TestTheLogHasWhatJSONHas(t *testing.T) {
	for _, what := range []any{aStatus, someStats, anEvent} {
		want, err := json.Marshal(what)
		require.NoError(t, err)
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("here", "it", what)
		var line struct {
			It json.RawMessage `json:"it"`
		}
		require.NoError(t, json.Unmarshal(log.Bytes(), &line))
		require.JSONEq(t, string(want), string(line.It))
	}
}

func TestWhatIsOutOfRangeHasATextAllTheSame(t *testing.T) {
	require.Equal(t, "State(99)", State(99).String())
	require.Equal(t, "Cause(99)", Cause(99).String())
}

func TestAConfigNeverTellsItsPassword(t *testing.T) {
	const secret = "hunter2"
	config := Config{Hosts: []string{"h:1"}, Key: "user.rpc", User: "u", Pass: secret, TTL: 10 * time.Second}
	var text, lines bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("here", "config", config, "pointer", &config)
	slog.New(slog.NewJSONHandler(&lines, nil)).Info("here", "config", config, "pointer", &config)
	written, err := json.Marshal(struct{ Etcd Config }{config})
	require.NoError(t, err)
	v3, err := yamlv3.Marshal(config)
	require.NoError(t, err)
	v4, err := yamlv4.Marshal(config)
	require.NoError(t, err)
	for _, told := range []string{
		text.String(), lines.String(), string(written), string(v3), string(v4),
		fmt.Sprint(config), fmt.Sprintf("%v %+v %#v %s", config, config, config, &config), fmt.Sprintf("%+v", struct{ Etcd Config }{config}),
	} {
		require.NotContains(t, told, secret)
		require.Contains(t, told, "user.rpc")
		require.Contains(t, told, "10s")
	}
	inXML, err := xml.Marshal(config)
	require.NoError(t, err)
	require.NotContains(t, string(inXML), secret)
	for _, verb := range []string{"%d", "%x", "%t", "%q", "%#v"} {
		require.Equal(t, config.String(), fmt.Sprintf(verb, config))
	}
}

func TestAPublisherIsPrintedAsItsKeyAndState(t *testing.T) {
	p := NewPublisher([]string{"h:1"}, "user.rpc", "v", WithPubEtcdAccount("u", "hunter2"))
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x"} {
		require.Equal(t, "user.rpc idle", fmt.Sprintf(verb, p))
	}
}

func TestAPasswordInAnEndpointIsNotTold(t *testing.T) {
	for _, host := range []string{
		"http://u:hunter2@etcd:2379", "u:hunter2@etcd:2379", "https://u:hunter2@etcd:2379", "etcd://u:hunter2@etcd:2379",
		"http://u:hunter2@etcd:23 79", "u:hunter2@etcd",
	} {
		config := Config{Hosts: []string{host}, Key: "k"}
		_, byConfig := config.NewPublisher("v")
		byPublisher := NewPublisher([]string{host, "https://other:1"}, "k", "v").KeepAlive()
		for _, told := range []string{byConfig.Error(), byPublisher.Error(), config.String()} {
			require.NotContains(t, told, "hunter2")
			require.Contains(t, told, "***@etcd")
		}
	}
}
