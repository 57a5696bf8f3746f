package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/discov-go/discov/test/bench/internal/results"
)

func TestMain(m *testing.M) {
	runIfChild()
	os.Exit(m.Run())
}

// smoke runs the benchmark as small as it gets, and returns its table and its rows.
func smoke(t *testing.T, shape string, kinds ...string) (string, results.Rows) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "rows.json")
	s := settings{
		sizes: []int{20}, rounds: 1, briefs: 1, steady: 2 * time.Second, atOnce: 10,
		shapes: []string{shape}, kinds: kinds, out: name,
	}
	var table strings.Builder
	require.NoError(t, bench(t.Context(), s, &table, t.Output()))
	file, err := os.Open(name)
	require.NoError(t, err)
	defer file.Close()
	rows, err := results.Read(file)
	require.NoError(t, err)
	return table.String(), rows
}

func TestEachFigureIsThereAndNothingOfOursIsLeft(t *testing.T) {
	t.Parallel()
	table, rows := smoke(t, results.Burst, allKinds...)
	whole := 0
	for _, r := range rows {
		requireStart(t, r)
		if r.Brief {
			continue
		}
		whole++
		requireFigures(t, r)
		if r.Kind == results.Discov {
			requireNothingLeft(t, r)
		}
	}
	require.Equal(t, len(allKinds), whole)
	require.Len(t, rows, 2*whole)
	require.Contains(t, table, "20 registrations")
	require.Contains(t, table, "requests per registration: LeaseGrant")
	require.NotContains(t, table, "spread")
}

func TestSpreadStartsTakeAThirdOfTheTTL(t *testing.T) {
	t.Parallel()
	table, rows := smoke(t, results.Spread, results.Discov)
	require.Len(t, rows, 1)
	require.GreaterOrEqual(t, rows[0].RegisterMS, 3000.0)
	requireStart(t, rows[0])
	requireFigures(t, rows[0])
	require.Contains(t, table, "spread")
}

func requireStart(t *testing.T, r results.Row) {
	t.Helper()
	require.Positive(t, r.RegisterMS, r.Kind)
	require.Positive(t, r.RegisterCPUMS, r.Kind)
	// A slow machine may make some ask again.
	for what, requests := range map[string]float64{
		"grants": r.RequestsPerRegistration["LeaseGrant"],
		"puts":   r.RequestsPerRegistration["Put"] + r.RequestsPerRegistration["Txn"],
	} {
		require.GreaterOrEqual(t, requests, 1.0, "%s: %s", r.Kind, what)
		require.Less(t, requests, 2.0, "%s: %s", r.Kind, what)
	}
}

func requireFigures(t *testing.T, r results.Row) {
	t.Helper()
	require.NotZero(t, r.RestCPUPercent, r.Kind)
	require.NotZero(t, r.RestEtcdCPUPercent, r.Kind)
	require.Positive(t, r.BaseEtcdCPUPercent, r.Kind)
	require.NotZero(t, r.DriftEtcdCPUPercent, r.Kind)
	require.NotZero(t, r.BytesPerRegistration, r.Kind)
	require.Positive(t, r.GoroutinesPerRegistration, r.Kind)
	require.Equal(t, r.Kind != results.Raw, r.BackMS != nil, r.Kind)
	require.NotNil(t, r.StopMS, r.Kind)
}

func requireNothingLeft(t *testing.T, r results.Row) {
	t.Helper()
	require.Zero(t, r.LeftGoroutines)
	require.Zero(t, r.LeftLeases)
	require.Zero(t, r.LeftWatchers)
	require.Zero(t, r.LeftKeys)
}

func TestKindsTakeTurnsAndSpreadIsOfTheSmallestSize(t *testing.T) {
	t.Parallel()
	s := settings{sizes: []int{20, 10}, briefs: 2, shapes: allShapes, kinds: []string{results.Raw, results.Discov}}
	plan := s.plan(1)
	require.Equal(t, results.Rows{
		{Kind: results.Discov, Size: 20, Shape: results.Burst, Round: 2},
		{Kind: results.Raw, Size: 20, Shape: results.Burst, Round: 2},
		{Kind: results.Discov, Size: 10, Shape: results.Burst, Round: 2},
		{Kind: results.Raw, Size: 10, Shape: results.Burst, Round: 2},
		{Kind: results.Discov, Size: 10, Shape: results.Spread, Round: 2},
		{Kind: results.Raw, Size: 10, Shape: results.Spread, Round: 2},
	}, slices.DeleteFunc(slices.Clone(plan), func(r results.Row) bool { return r.Brief }))
	require.Equal(t, results.Rows{
		{Kind: results.Discov, Size: 20, Shape: results.Burst, Round: 2, Brief: true},
		{Kind: results.Raw, Size: 20, Shape: results.Burst, Round: 2, Brief: true},
		{Kind: results.Raw, Size: 20, Shape: results.Burst, Round: 2, Brief: true},
		{Kind: results.Discov, Size: 20, Shape: results.Burst, Round: 2, Brief: true},
	}, plan[:4])
	require.Len(t, plan, 6+2*2*s.briefs)
}

func TestRestIsWhatIsUsedMoreThanBeforeLessTheDrift(t *testing.T) {
	t.Parallel()
	base := uses{own: use{process: 1, etcd: 7}, idle: use{process: 2, etcd: 5}}
	rest := uses{own: use{process: 11, etcd: 40}, idle: use{process: 5, etcd: 9}}
	net, drift := rest.since(base)
	require.Equal(t, use{process: 3, etcd: 4}, drift)
	require.Equal(t, use{process: 7, etcd: 29}, net)
}

func TestFlagsThatAreWrongAreNamed(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"-sizes", "1000,many"}, {"-sizes", "0"}, {"-sizes", "5,5"}, {"-sizes", ""}, {"-rounds", "-1"},
		{"-steady", "70"}, {"-steady", "0s"}, {"-at-once", "x"}, {"-shapes", "burst,flat"}, {"-kinds", "consul"},
	} {
		var told strings.Builder
		_, err := parse(args, &told)
		require.ErrorContains(t, err, args[0])
		require.Contains(t, told.String(), args[0])
	}
	_, err := parse([]string{"1000"}, io.Discard)
	require.ErrorContains(t, err, `"1000"`)
}

func TestFlagsSetWhatTheySay(t *testing.T) {
	t.Parallel()
	s, err := parse(strings.Fields("-sizes 5,7 -rounds 2 -steady 3s -at-once 4 -shapes spread -kinds raw,discov -out f"), io.Discard)
	require.NoError(t, err)
	require.Equal(t, settings{
		sizes: []int{5, 7}, rounds: 2, briefs: 4, steady: 3 * time.Second, atOnce: 4,
		shapes: []string{results.Spread}, kinds: []string{results.Raw, results.Discov}, out: "f",
	}, s)
}

func TestARunEndsWithItsContext(t *testing.T) {
	t.Parallel()
	s, err := parse(nil, io.Discard)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Second, cancel)
	require.Error(t, bench(ctx, s, io.Discard, io.Discard))
}
