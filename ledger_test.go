package discov

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/discov-go/discov/internal/bubble"
	"github.com/stretchr/testify/require"
)

// init makes an undrawn change of state fail whatever test it happens in.
func init() {
	undrawn = func(from, to State) { panic(fmt.Sprintf("%v -> %v is not in the diagram", from, to)) }
}

func TestAnUndrawnChangeOfStateIsToldTakesPlaceAndFailsTests(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		log := &LogLines{}
		l := newLedger("user.rpc", "", "v0", newTeller(nil, log.logger()))
		require.PanicsWithValue(t, "idle -> published is not in the diagram", func() { l.enter(StatePublished, nil) })
		require.Equal(t, StatePublished, l.snapshot().State)
		synctest.Wait()
		require.Contains(t, log.String(), `level=ERROR msg="discov: a bug: the diagram has no way between these states" from=idle to=published`)
	})
}

func TestADrawnChangeOfStateIsNoBug(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		log := &LogLines{}
		l := newLedger("user.rpc", "", "v0", newTeller(nil, log.logger()))
		for _, to := range []State{StateRegistering, StatePublished, StateWithdrawing, StateStopped} {
			l.enter(to, nil)
		}
		synctest.Wait()
		require.NotContains(t, log.String(), "bug")
	})
}

func TestAnAddressThatNobodyCanCallIsAWarningOnce(t *testing.T) {
	for value, warned := range map[string]bool{
		":8080": true, "0.0.0.0:8080": true, "[::]:8080": true,
		"10.0.0.7:8080": false, "127.0.0.1:8080": false, "user.rpc:8080": false, "[fe80::1]:8080": false, "v0": false, `{"Addr":":8080"}`: false, "::": false, ":x": false,
	} {
		t.Run(value, func(t *testing.T) {
			inBubble(t, func(t *testing.T, f *fakeEtcd) {
				log := &LogLines{}
				p := f.publisher(WithId(7), WithLogger(log.logger()))
				require.NoError(t, p.Update(t.Context(), value))
				require.NoError(t, p.KeepAlive())
				require.NoError(t, p.Update(t.Context(), "10.0.0.7:8080"))
				require.NoError(t, p.Update(t.Context(), value))
				synctest.Wait()
				require.Equal(t, warned, strings.Count(log.String(), "others cannot call") == 1, "%s", log)
				p.Stop()
			})
		})
	}
}

func TestEventsThatNobodyHearsAreDroppedAtOnce(t *testing.T) {
	teller := newTeller(nil, slog.New(slog.DiscardHandler))
	l := newLedger("user.rpc", "", "v0", teller)
	l.enter(StateRegistering, nil)
	l.enter(StatePublished, nil)
	require.Empty(t, teller.waiting)
	require.False(t, teller.telling)
}
