package advertise

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// fake is a machine of the test's.
type fake struct {
	vars   map[string]string
	ifaces map[string][]string
	routes map[string]string
}

func (f fake) env(name string) string { return f.vars[name] }

func (f fake) addrs(name string) (all []netip.Addr, err error) {
	if _, ok := f.ifaces[name]; name != "" && !ok {
		return nil, errors.New("no such interface")
	}
	for iface, addrs := range f.ifaces {
		for _, addr := range addrs {
			if name == "" || name == iface {
				all = append(all, netip.MustParseAddr(addr))
			}
		}
	}
	return all, nil
}

func (f fake) outward(network string) (netip.Addr, error) {
	if f.routes[network] == "" {
		return netip.Addr{}, errors.New("network is unreachable")
	}
	return netip.ParseAddr(f.routes[network])
}

// usual is a machine with two networks, of which one leads outward.
func usual(vars map[string]string) fake {
	return fake{
		vars: vars,
		ifaces: map[string][]string{
			"lo":   {"127.0.0.1", "::1"},
			"eth0": {"10.0.0.7", "2001:db8::7", "fe80::7"},
			"eth1": {"192.168.1.7"},
			"eth2": {"172.16.0.7", "172.16.0.8"},
			"eth3": {"fe80::8"},
		},
		routes: map[string]string{"udp4": "10.0.0.7", "udp6": "2001:db8::7"},
	}
}

func TestWhatOthersCanCallIsFound(t *testing.T) {
	for name, tried := range map[string]struct {
		listen string
		vars   map[string]string
		opts   []Option
		of     *fake
		want   string
	}{
		"no host":                        {listen: ":8080", want: "10.0.0.7:8080"},
		"all of IPv4":                    {listen: "0.0.0.0:8080", want: "10.0.0.7:8080"},
		"all":                            {listen: "[::]:8080", want: "10.0.0.7:8080"},
		"its own address":                {listen: "192.168.1.7:8080", want: "192.168.1.7:8080"},
		"its own IPv6":                   {listen: "[2001:db8::7]:8080", want: "[2001:db8::7]:8080"},
		"its own name":                   {listen: "node-7:8080", want: "node-7:8080"},
		"IPv6 alone":                     {listen: "[::]:8080", of: &fake{routes: map[string]string{"udp6": "2001:db8::7"}}, want: "[2001:db8::7]:8080"},
		"the environment":                {listen: "10.0.0.7:8080", vars: map[string]string{HostEnv: "203.0.113.5", PortEnv: "32001"}, want: "203.0.113.5:32001"},
		"a name of the environment":      {listen: ":8080", vars: map[string]string{HostEnv: "edge.example.com"}, want: "edge.example.com:8080"},
		"an IPv6 of the environment":     {listen: ":8080", vars: map[string]string{HostEnv: "2001:db8::9"}, want: "[2001:db8::9]:8080"},
		"loopback of the environment":    {listen: ":8080", vars: map[string]string{HostEnv: "127.0.0.1"}, want: "127.0.0.1:8080"},
		"a port of the environment":      {listen: ":0", vars: map[string]string{PortEnv: "32001"}, want: "10.0.0.7:32001"},
		"a pod":                          {listen: ":8080", vars: map[string]string{PodIPEnv: "10.244.1.5"}, want: "10.244.1.5:8080"},
		"a pod with IPv6":                {listen: ":8080", vars: map[string]string{PodIPEnv: "fd00::5"}, want: "[fd00::5]:8080"},
		"the environment before a pod":   {listen: ":8080", vars: map[string]string{PodIPEnv: "10.244.1.5", HostEnv: "h"}, want: "h:8080"},
		"its own address before a pod":   {listen: "10.0.0.7:8080", vars: map[string]string{PodIPEnv: "10.244.1.5"}, want: "10.0.0.7:8080"},
		"an interface":                   {listen: ":8080", opts: []Option{Interface("eth1")}, want: "192.168.1.7:8080"},
		"an interface, IPv4 first":       {listen: ":8080", opts: []Option{Interface("eth0")}, want: "10.0.0.7:8080"},
		"a network":                      {listen: ":8080", opts: []Option{Network("192.168.0.0/16")}, want: "192.168.1.7:8080"},
		"a network of IPv6":              {listen: ":8080", opts: []Option{Network("2001:db8::/32")}, want: "[2001:db8::7]:8080"},
		"both":                           {listen: ":8080", opts: []Option{Interface("eth2"), Network("172.16.0.8/32")}, want: "172.16.0.8:8080"},
		"loopback, asked for":            {listen: "127.0.0.1:8080", opts: []Option{Loopback()}, want: "127.0.0.1:8080"},
		"localhost, asked for":           {listen: "localhost:8080", opts: []Option{Loopback()}, want: "localhost:8080"},
		"loopback where nothing else is": {listen: ":8080", opts: []Option{Loopback()}, of: &fake{}, want: "127.0.0.1:8080"},
		"loopback is not preferred":      {listen: ":8080", opts: []Option{Loopback()}, want: "10.0.0.7:8080"},
	} {
		t.Run(name, func(t *testing.T) {
			of := usual(tried.vars)
			if tried.of != nil {
				of = *tried.of
			}
			got, err := addr(of, tried.listen, tried.opts)
			require.NoError(t, err)
			require.Equal(t, tried.want, got)
		})
	}
}

func TestThereIsAnErrorRatherThanAGuess(t *testing.T) {
	for want, tried := range map[string]struct {
		listen string
		vars   map[string]string
		opts   []Option
		of     *fake
	}{
		`listen address "8080": want host:port`:                             {listen: "8080"},
		`port "0": want one from 1 to 65535`:                                {listen: ":0"},
		`port "http": want one from 1 to 65535`:                             {listen: ":http"},
		`DISCOV_ADVERTISE_PORT is "70000"`:                                  {listen: ":8080", vars: map[string]string{PortEnv: "70000"}},
		`DISCOV_ADVERTISE_HOST is "0.0.0.0": nobody can call`:               {listen: ":8080", vars: map[string]string{HostEnv: "0.0.0.0"}},
		`DISCOV_ADVERTISE_HOST is "h:80": want a host or an IP address`:     {listen: ":8080", vars: map[string]string{HostEnv: "h:80"}},
		`DISCOV_ADVERTISE_HOST is "169.254.1.1": 169.254.1.1 is link-local`: {listen: ":8080", vars: map[string]string{HostEnv: "169.254.1.1"}},
		`DISCOV_ADVERTISE_HOST is "224.0.0.1": nobody can call`:             {listen: ":8080", vars: map[string]string{HostEnv: "224.0.0.1"}},
		`DISCOV_ADVERTISE_HOST is "::ffff:0.0.0.0": nobody can call`:        {listen: ":8080", vars: map[string]string{HostEnv: "::ffff:0.0.0.0"}},
		`DISCOV_ADVERTISE_HOST is "*": want a host`:                         {listen: ":8080", vars: map[string]string{HostEnv: "*"}},
		`host "*": want a name or an IP address`:                            {listen: "*:8080"},
		`only this machine can call LOCALHOST`:                              {listen: "LOCALHOST:8080"},
		`POD_IP is "pod-7": want an IP address`:                             {listen: ":8080", vars: map[string]string{PodIPEnv: "pod-7"}},
		`only this machine can call 127.0.0.1`:                              {listen: "127.0.0.1:8080"},
		`only this machine can call ::1`:                                    {listen: "[::1]:8080"},
		`only this machine can call localhost`:                              {listen: "localhost:8080"},
		`fe80::7 is link-local`:                                             {listen: "[fe80::7]:8080"},
		`nobody can call 224.0.0.1`:                                         {listen: "224.0.0.1:8080"},
		`no such interface`:                                                 {listen: ":8080", opts: []Option{Interface("eth9")}},
		`interface eth3 has no address that others can call`:                {listen: ":8080", opts: []Option{Interface("eth3")}},
		`interface eth2 has several addresses, choose one`:                  {listen: ":8080", opts: []Option{Interface("eth2")}},
		`network "10.0.0.0": want CIDR notation`:                            {listen: ":8080", opts: []Option{Network("10.0.0.0")}},
		`network 10.9.0.0/16 has no address`:                                {listen: ":8080", opts: []Option{Network("10.9.0.0/16")}},
		`network 10.0.0.0/8 on interface eth1 has no address`:               {listen: ":8080", opts: []Option{Interface("eth1"), Network("10.0.0.0/8")}},
		`network 2001:db8::/32 has no address`:                              {listen: "0.0.0.0:8080", opts: []Option{Network("2001:db8::/32")}},
		`no route to others; set DISCOV_ADVERTISE_HOST`:                     {listen: ":8080", of: &fake{}},
		`option 1 of 1 is nil`:                                              {listen: ":8080", opts: []Option{nil}},
		"127.0.0.1 leads nowhere":                                           {listen: ":8080", of: &fake{routes: map[string]string{"udp4": "127.0.0.1"}}},
	} {
		t.Run(want, func(t *testing.T) {
			of := usual(tried.vars)
			if tried.of != nil {
				of = *tried.of
			}
			got, err := addr(of, tried.listen, tried.opts)
			require.ErrorContains(t, err, want)
			require.ErrorContains(t, err, "advertise: ")
			require.Empty(t, got)
		})
	}
}

func TestOnThisMachine(t *testing.T) {
	for _, variable := range []string{HostEnv, PortEnv, PodIPEnv} {
		t.Setenv(variable, "")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	got, err := Addr(listener.Addr().String(), Loopback())
	require.NoError(t, err)
	require.Equal(t, listener.Addr().String(), got)

	got, err = Addr(":8080", Loopback())
	require.NoError(t, err)
	host, port, err := net.SplitHostPort(got)
	require.NoError(t, err)
	require.Equal(t, "8080", port)
	ip := net.ParseIP(host)
	require.NotNil(t, ip)
	require.False(t, ip.IsUnspecified())

	loopback, err := Addr(":8080", Network("127.0.0.0/8"), Loopback())
	require.NoError(t, err)
	require.Equal(t, "127.0.0.1:8080", loopback)
	_, err = Addr(":8080", Interface("there is none"))
	require.ErrorContains(t, err, `interface "there is none"`)

	t.Setenv(HostEnv, "203.0.113.5")
	got, err = Addr(":8080")
	require.NoError(t, err)
	require.Equal(t, "203.0.113.5:8080", got)
}
