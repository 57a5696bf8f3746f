package conn

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// schemeOf returns the scheme of an endpoint, or "" if it has none.
func schemeOf(endpoint string) string {
	if scheme, _, ok := strings.Cut(endpoint, "://"); ok {
		return scheme
	}
	if scheme, _, ok := strings.Cut(endpoint, ":"); ok && (scheme == "unix" || scheme == "unixs") {
		return scheme
	}
	return ""
}

// isSecure reports whether an endpoint asks for TLS by itself.
func isSecure(endpoint string) bool {
	scheme := schemeOf(endpoint)
	return scheme == "https" || scheme == "unixs"
}

// IsPlaintext reports whether an endpoint excludes TLS by itself.
func IsPlaintext(endpoint string) bool {
	scheme := schemeOf(endpoint)
	return scheme == "http" || scheme == "unix"
}

// isLocal reports whether an endpoint is on this machine.
func isLocal(endpoint string) bool {
	scheme := schemeOf(endpoint)
	if scheme == "unix" || scheme == "unixs" {
		return true
	}
	host, _, _ := net.SplitHostPort(strings.TrimPrefix(endpoint, scheme+"://"))
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Masked returns an endpoint without the user and password that it may have by mistake.
func Masked(endpoint string) string {
	if i := strings.LastIndex(endpoint, "@"); i >= 0 {
		return "***" + endpoint[i:]
	}
	return endpoint
}

// CheckEndpoint returns what is wrong with one endpoint.
func CheckEndpoint(endpoint string) error {
	switch scheme := schemeOf(endpoint); {
	case strings.Contains(endpoint, "@") && scheme != "unix" && scheme != "unixs":
		return errors.New("want no user and no password in it")
	case scheme == "":
		return CheckHostPort(endpoint)
	case scheme == "unix", scheme == "unixs":
		if strings.TrimLeft(strings.TrimPrefix(endpoint, scheme+":"), "/") == "" {
			return errors.New("no socket path")
		}
		return nil
	case scheme == "http", scheme == "https":
		u, err := url.Parse(endpoint)
		if err != nil {
			return errors.Unwrap(err)
		}
		if u.Path != "" || u.RawQuery != "" || u.Fragment != "" {
			return errors.New("want no more than scheme://host:port")
		}
		return CheckHostPort(u.Host)
	default:
		return fmt.Errorf("unknown scheme %q", scheme)
	}
}

// CheckHostPort returns what is wrong with an address to call.
func CheckHostPort(hostPort string) error {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return fmt.Errorf("want host:port: %s", why(err))
	}
	if host == "" || strings.ContainsAny(host, " \t\r\n/") {
		return fmt.Errorf("bad host %q", host)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("bad port %q", port)
	}
	return nil
}

// why is an error without the address that it names, which may have a password.
func why(err error) string {
	var addr *net.AddrError
	if errors.As(err, &addr) {
		return addr.Err
	}
	return err.Error()
}

// CheckTogether returns what is wrong with endpoints as those of one client, which all get TLS or none. withTLS is whether
// it was asked for besides.
func CheckTogether(endpoints []string, withTLS bool) error {
	first := slices.Min(endpoints)
	if _, err := url.Parse("etcd:///" + first); err != nil { // the client makes its target of the first
		return fmt.Errorf("%q: %w", Masked(first), errors.Unwrap(err))
	}
	if !withTLS && slices.ContainsFunc(endpoints, isSecure) && !allSecure(endpoints) {
		return fmt.Errorf("some say https and some do not: %s", Masked(strings.Join(endpoints, ", ")))
	}
	return nil
}

func allSecure(endpoints []string) bool {
	return !slices.ContainsFunc(endpoints, func(endpoint string) bool { return !isSecure(endpoint) })
}
