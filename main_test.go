package discov_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/discov-go/discov/internal/etcdtest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if endpoint := os.Getenv(childEndpoint); endpoint != "" {
		os.Exit(serve(endpoint))
	}
	code := etcdtest.Main(m)
	exampleEtcd.End()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}
