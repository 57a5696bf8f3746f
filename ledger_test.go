package discov

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
)

// init makes an undrawn change of state fail whatever test it happens in.
func init() {
	undrawn = func(from, to State) { panic(fmt.Sprintf("%v -> %v is not in the diagram", from, to)) }
}

func TestAnUndrawnChangeOfStateIsToldTakesPlaceAndFailsTests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &LogLines{}
		l := newLedger("user.rpc", "", "v0", newTeller(nil, log.logger()))
		require.PanicsWithValue(t, "idle -> published is not in the diagram", func() { l.enter(StatePublished, nil) })
		require.Equal(t, StatePublished, l.snapshot().State)
		synctest.Wait()
		require.Contains(t, log.String(), `level=ERROR msg="discov: a bug: the diagram has no way between these states" from=idle to=published`)
	})
}

func TestADrawnChangeOfStateIsNoBug(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &LogLines{}
		l := newLedger("user.rpc", "", "v0", newTeller(nil, log.logger()))
		for _, to := range []State{StateRegistering, StatePublished, StateWithdrawing, StateStopped} {
			l.enter(to, nil)
		}
		synctest.Wait()
		require.NotContains(t, log.String(), "bug")
	})
}

func TestEventsThatNobodyHearsAreDroppedAtOnce(t *testing.T) {
	teller := newTeller(nil, slog.New(slog.DiscardHandler))
	l := newLedger("user.rpc", "", "v0", teller)
	l.enter(StateRegistering, nil)
	l.enter(StatePublished, nil)
	require.Empty(t, teller.waiting)
	require.False(t, teller.telling)
}
