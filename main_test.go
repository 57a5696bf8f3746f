package discov_test

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/discov-go/discov"
	"github.com/discov-go/discov/internal/etcdtest"
	"go.uber.org/goleak"
)

// A run of this binary with childEndpoint set is not a test but a service of one registration; see the tests of
// processes that end.
const (
	childEndpoint = "DISCOV_TEST_CHILD_ENDPOINT"
	childStops    = "DISCOV_TEST_CHILD_STOPS"
)

func TestMain(m *testing.M) {
	if endpoint := os.Getenv(childEndpoint); endpoint != "" {
		os.Exit(serve(endpoint, os.Getenv(childStops) != ""))
	}
	code := etcdtest.Main(m)
	stopExampleEtcd()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// serve registers, waits until its standard input ends, and ends itself: right after Stop, or without it.
func serve(endpoint string, stops bool) int {
	pub := discov.NewPublisher([]string{endpoint}, "child.rpc", "10.0.0.7:8080", discov.WithId(1), discov.WithTTL(2*time.Second))
	if err := pub.KeepAlive(); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(pub.Status().Key)
	_, _ = os.Stdin.Read(make([]byte, 1))
	if stops {
		pub.Stop()
	}
	return 0
}
