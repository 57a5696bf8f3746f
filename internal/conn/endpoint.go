package conn

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"strings"
)

// Scheme returns the scheme of an endpoint, empty where it has none.
func Scheme(endpoint string) string {
	if scheme, _, ok := strings.Cut(endpoint, "://"); ok {
		return scheme
	}
	if scheme, _, ok := strings.Cut(endpoint, ":"); ok && (scheme == "unix" || scheme == "unixs") {
		return scheme
	}
	return ""
}

// IsSecure reports whether an endpoint asks for TLS by itself.
func IsSecure(endpoint string) bool {
	scheme := Scheme(endpoint)
	return scheme == "https" || scheme == "unixs"
}

// CheckEndpoint returns what is wrong with an endpoint: it must be host:port, http(s)://host:port or unix(s)://path.
func CheckEndpoint(endpoint string) error {
	switch scheme := Scheme(endpoint); scheme {
	case "":
		return checkHostPort(endpoint)
	case "unix", "unixs":
		if strings.TrimLeft(strings.TrimPrefix(endpoint, scheme+":"), "/") == "" {
			return errors.New("no socket path")
		}
		return nil
	case "http", "https":
		u, err := url.Parse(endpoint)
		if err != nil {
			return errors.Unwrap(err)
		}
		if u.Path != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return errors.New("want no more than scheme://host:port")
		}
		return checkHostPort(u.Host)
	default:
		return fmt.Errorf("unknown scheme %q", scheme)
	}
}

func checkHostPort(hostPort string) error {
	host, port, err := net.SplitHostPort(hostPort)
	if err != nil {
		return fmt.Errorf("want host:port: %w", err)
	}
	if host == "" || strings.ContainsAny(host, " \t\r\n/") {
		return fmt.Errorf("bad host %q", host)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("bad port %q", port)
	}
	return nil
}
