package conn

import (
	"testing"

	"github.com/discov-go/discov/internal/auth"
	"github.com/stretchr/testify/require"
)

func TestEndpointsAreChecked(t *testing.T) {
	t.Parallel()
	for endpoint, wrong := range map[string]string{
		"etcd1:2379":             "",
		"[::1]:2379":             "",
		"http://etcd1:2379":      "",
		"https://etcd1:2379":     "",
		"unix:///run/etcd.sock":  "",
		"unix:etcd.sock":         "",
		"unixs://run/etcd.sock":  "",
		"":                       "want host:port",
		"etcd1":                  "want host:port",
		":2379":                  `bad host ""`,
		"a b:2379":               `bad host "a b"`,
		"etcd1:0":                `bad port "0"`,
		"etcd1:65536":            `bad port "65536"`,
		"etcd1:client":           `bad port "client"`,
		"unix://":                "no socket path",
		"http://etcd1:2379/v3":   "want no more than scheme://host:port",
		"http://u:p@etcd1:2379":  "want no user and no password in it",
		"u:p@etcd1:2379":         "want no user and no password in it",
		"https://etcd1:2379?a=b": "want no more than scheme://host:port",
		"http://etcd1:%zz":       `invalid port ":%zz"`,
		"http://":                "want host:port",
		"dns:///etcd1:2379":      `unknown scheme "dns"`,
	} {
		err := CheckEndpoint(endpoint)
		if wrong == "" {
			require.NoErrorf(t, err, "%q", endpoint)
		} else {
			require.ErrorContainsf(t, err, wrong, "%q", endpoint)
		}
	}
}

func TestEndpointsOfOneClientGetTLSOrNone(t *testing.T) {
	t.Parallel()
	secure, plain := "https://a:1", "b:1"
	require.NoError(t, CheckTogether([]string{secure, "unixs://s"}, false))
	require.NoError(t, CheckTogether([]string{plain, "http://a:1"}, false))
	require.NoError(t, CheckTogether([]string{secure, plain}, true))
	require.ErrorContains(t, CheckTogether([]string{secure, plain}, false), "some say https and some do not")
	require.ErrorContains(t, CheckTogether([]string{"%zz:1"}, false), "invalid URL escape")
	for endpoint, want := range map[string]bool{secure: false, plain: false, "http://a:1": true, "unix:s": true, "unixs:s": false} {
		require.Equalf(t, want, IsPlaintext(endpoint), "%q", endpoint)
	}
}

func TestTargetsAreEqualWhateverTheOrderOfTheirEndpoints(t *testing.T) {
	t.Parallel()
	given := []string{"b:1", "a:1", "b:1"}
	one, other := Target{}.To(given), Target{}.To([]string{"a:1", "b:1"})
	require.Equal(t, one, other)
	require.Equal(t, "a:1, b:1", one.String())
	require.Equal(t, []string{"b:1", "a:1", "b:1"}, given, "what the caller gave is the caller's")
	require.NotEqual(t, one, Target{}.To([]string{"a:1"}))
	require.NotEqual(t, one, Target{Login: auth.Login{User: "u", Pass: "p"}}.To(given))
	require.NotEqual(t, one, Target{Tuning: &Tuning{}}.To(given))
}
