package etcdtest_test

import (
	"os"
	"testing"

	"github.com/discov-go/discov/internal/etcdtest"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	etcdtest.RunIfChild()
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			code = 1
		}
	}
	os.Exit(code)
}
