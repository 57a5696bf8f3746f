package etcdtest_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/discov-go/discov/internal/etcdtest"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func TestKilledProcessStartsAgainWithItsData(t *testing.T) {
	t.Parallel()
	p := etcdtest.StartProcess(t, etcdtest.QuickTicks())
	put(t, p.Client(t), "k", "v")
	p.Kill()
	p.Kill()
	_, err := p.Client(t).Get(within(t, 100*time.Millisecond), "k")
	require.Error(t, err)
	p.Start()
	require.Equal(t, "v", get(t, p.Client(t), "k"))
	p.Restart()
	require.Equal(t, "v", get(t, p.Client(t), "k"))
	p.Wipe()
	require.Empty(t, get(t, p.Client(t), "k"))
}

func TestFrozenProcessAnswersNothingUntilThaw(t *testing.T) {
	t.Parallel()
	p := etcdtest.StartProcess(t, etcdtest.QuickTicks())
	put(t, p.Client(t), "k", "v")
	p.Freeze()
	p.Freeze()
	_, err := p.Client(t).Get(within(t, 100*time.Millisecond), "k")
	require.Error(t, err)
	p.Thaw()
	p.Thaw()
	require.Equal(t, "v", get(t, p.Client(t), "k"))
	p.Freeze()
	p.Stop()
	p.Start()
	require.Equal(t, "v", get(t, p.Client(t), "k"))
	p.Freeze()
	p.Kill()
	p.Start()
	p.Freeze() // and the end of the test gets rid of it
}

func TestProcessTellsItsCounts(t *testing.T) {
	t.Parallel()
	for _, with := range []string{"plaintext", "TLS"} {
		t.Run(with, func(t *testing.T) {
			t.Parallel()
			ca := etcdtest.NewCA(t)
			opts := []etcdtest.Option{etcdtest.QuickTicks()}
			cfg := clientv3.Config{}
			if with == "TLS" {
				opts = append(opts, etcdtest.WithServerTLS(ca.Issue(t)))
				cfg.TLS = tlsConfig(t, ca.Issue(t))
			}
			p := etcdtest.StartProcess(t, opts...)
			put(t, p.Client(t), "ours", "v")
			cfg.Endpoints = p.Endpoints()
			c := client(t, cfg)
			put(t, c, "k", "v")
			<-c.Watch(short(t), "k", clientv3.WithCreatedNotify())
			require.Equal(t, map[string]int{"Put": 1, "Watch": 1, "Watch.msg": 1, "Watch.create": 1}, p.Requests())
			requireWatchers(t, p, 1)
			require.Equal(t, 1, p.OpenStreams("Watch"))
			if with == "plaintext" {
				require.Equal(t, 1, p.Connections())
			}
		})
	}
}

func TestProcessClusterElectsAnotherLeaderWhenOneFreezes(t *testing.T) {
	t.Parallel()
	c := etcdtest.StartProcessCluster(t, 3, etcdtest.QuickTicks(), etcdtest.WithAuth("user", "pass"))
	old := c.Leader()
	old.Freeze()
	etcdtest.RequireSoon(t, 10*time.Second, func() bool { return c.Leader() != old })
	put(t, c.Leader().Client(t), "k", "v")
	old.Thaw()
	require.Equal(t, "v", get(t, old.Client(t), "k"))
	require.Len(t, c.Followers(), 2)
}

// A parent that is killed can't clean up; this test is one when parentEnv is set.
const parentEnv = "ETCDTEST_PARENT"

func TestChildDiesWithItsParent(t *testing.T) {
	switch as := os.Getenv(parentEnv); as {
	case "":
	case "proxy":
		fmt.Printf("\nchild %d\n", etcdtest.StartProxy(t, []string{"127.0.0.1:1"}).PID())
		select {}
	default:
		p := etcdtest.StartProcess(t, etcdtest.QuickTicks())
		if as == "frozen" {
			p.Freeze()
		}
		fmt.Printf("\nchild %d\n", p.PID())
		select {}
	}
	t.Parallel()
	for _, as := range []string{"running", "frozen", "proxy"} {
		t.Run(as, func(t *testing.T) {
			t.Parallel()
			parent := exec.Command(os.Args[0], "-test.run=^TestChildDiesWithItsParent$")
			parent.Env = append(os.Environ(), parentEnv+"="+as)
			out, err := parent.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, parent.Start())
			child := 0
			for lines := bufio.NewScanner(out); child == 0 && lines.Scan(); {
				fmt.Sscanf(lines.Text(), "child %d", &child)
			}
			require.NotZero(t, child)
			require.True(t, alive(child))
			require.NoError(t, parent.Process.Kill())
			parent.Wait()
			etcdtest.RequireSoon(t, 5*time.Second, func() bool { return !alive(child) }, "the child's end")
		})
	}
}

// alive reads /proc, for who adopts the child may leave a zombie.
func alive(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(state, "Z")
}
