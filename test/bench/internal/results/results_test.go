package results_test

import (
	"bytes"
	"math"
	"testing"

	"github.com/discov-go/discov/test/bench/internal/results"
	"github.com/stretchr/testify/require"
)

func TestRowsAreReadAsTheyWereWritten(t *testing.T) {
	t.Parallel()
	back := 12.5
	rows := results.Rows{
		{Kind: results.Raw, Size: 20, Shape: results.Burst, Round: 1, RequestsPerRegistration: map[string]float64{"Put": 1}},
		{Kind: results.Discov, Size: 20, Shape: results.Spread, Round: 2, BackMS: &back, LeftKeys: 3},
	}
	var file bytes.Buffer
	for _, r := range rows {
		require.NoError(t, r.Write(&file))
	}
	read, err := results.Read(&file)
	require.NoError(t, err)
	require.Equal(t, rows, read)
}

func TestReadNamesTheRowThatIsBroken(t *testing.T) {
	t.Parallel()
	_, err := results.Read(bytes.NewBufferString("{}\n{"))
	require.ErrorContains(t, err, "row 2")
}

func TestMedianOfAnEvenNumberLiesBetweenTheMiddleTwo(t *testing.T) {
	t.Parallel()
	rows := results.Rows{{LeftKeys: 9}, {LeftKeys: 1}, {LeftKeys: 3}, {LeftKeys: 2}}
	require.InDelta(t, 2.5, rows.Median(results.LeftKeys), 0)
	require.InDelta(t, 2, rows[1:].Median(results.LeftKeys), 0)
	require.True(t, math.IsNaN(results.Rows{}.Median(results.LeftKeys)))
}

func TestTheStartsAreThoseOfBriefRowsAndAllElseOfTheOthers(t *testing.T) {
	t.Parallel()
	rows := results.Rows{
		{RegisterMS: 1, StopMS: new(5.0), RequestsPerRegistration: map[string]float64{"Txn": 1}},
		{RegisterMS: 3, Brief: true, RequestsPerRegistration: map[string]float64{"Put": 2}},
	}
	require.InDelta(t, 3, rows.Median(results.Register), 0)
	require.InDelta(t, 5, rows.Median(results.Stop), 0)
	require.True(t, math.IsNaN(rows[1:].Median(results.Stop)))
	requests := rows.Requests()
	require.Len(t, requests, 1)
	require.Contains(t, requests[0].Name, "Put")
	require.InDelta(t, 2, rows.Median(requests[0]), 0)
}

func TestWhatHalfOfTheRowsNeverSawHasNoMedian(t *testing.T) {
	t.Parallel()
	ms := 5.0
	once, never := results.Row{BackMS: &ms}, results.Row{}
	require.InDelta(t, 5, results.Rows{once, never, once}.Median(results.Back), 0)
	require.True(t, math.IsInf(results.Rows{never, once, never}.Median(results.Back), 1))
	require.True(t, math.IsInf(results.Rows{never, once}.Median(results.Back), 1))
}

func TestTableShowsMediansRatiosAndWhatIsMissing(t *testing.T) {
	t.Parallel()
	rows := results.Rows{
		{Kind: results.Raw, Size: 20, Shape: results.Burst, Brief: true, RegisterMS: 10},
		{Kind: results.Discov, Size: 20, Shape: results.Burst, Brief: true, RegisterMS: 15},
		{Kind: results.Raw, Size: 20, Shape: results.Burst},
		{Kind: results.Discov, Size: 20, Shape: results.Burst},
	}
	var table bytes.Buffer
	require.NoError(t, rows.Table(&table))
	require.Regexp(t, `20 registrations +raw +go-zero +discov +discov/raw`, table.String())
	require.Regexp(t, `register, ms +10 +– +15 +1\.50 +– +–`, table.String())
	require.Regexp(t, `back after all leases are revoked, ms +never +– +never +– +– +–`, table.String())
	require.NotContains(t, table.String(), "spread")
}

func TestNumberKeepsAboutThreeDigits(t *testing.T) {
	t.Parallel()
	for v, want := range map[float64]string{0: "0", 3: "3", 0.0042: "0.004", 1.234: "1.23", 56.78: "56.8", 1234.5: "1234"} {
		require.Equal(t, want, results.Number(v))
	}
}
