// Package advertise finds the address to publish for a server that listens on all addresses of its machine.
//
//	addr, err := advertise.Addr(listener.Addr().String())
//
// An address to listen on, such as ":8080", cannot be called by others. What is published has to be right for those who read it,
// so an error is returned rather than a guess.
package advertise

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// The environment variables that Addr reads. HostEnv and PortEnv override everything: they are for what no process can find
// out about itself, as the host and the port of a container that its machine forwards. PodIPEnv is by convention the address
// of a Kubernetes pod, set by the downward API.
const (
	HostEnv  = "DISCOV_ADVERTISE_HOST"
	PortEnv  = "DISCOV_ADVERTISE_PORT"
	PodIPEnv = "POD_IP"
)

// Option chooses among the addresses of the machine.
type Option func(*choice)

// Interface takes the address of one network interface.
func Interface(name string) Option {
	return func(c *choice) { c.iface = name }
}

// Network takes the address that lies within a network in CIDR notation, such as "10.0.0.0/8".
func Network(cidr string) Option {
	return func(c *choice) { c.cidr = cidr }
}

// Loopback accepts a loopback address: that on which the server listens, or 127.0.0.1 if the machine has no other. It is for
// tests and examples on one machine.
func Loopback() Option {
	return func(c *choice) { c.loopback = true }
}

// Addr returns the host:port under which others reach a server that listens on listen, which is host:port too, as
// net.Listener's Addr has it. The host is, in this order:
//
//   - the one of [HostEnv];
//   - the one of listen, unless that is empty or a wildcard;
//   - the one of [PodIPEnv];
//   - the one that [Interface] and [Network] choose;
//   - the one from which the machine reaches other networks.
//
// The port is that of [PortEnv], or of listen. The host is never a wildcard or link-local, and loopback only if [HostEnv] says so
// or [Loopback] is given. An error names what is wrong or missing.
func Addr(listen string, opts ...Option) (string, error) {
	return addr(machine{}, listen, opts)
}

func addr(of host, listen string, opts []Option) (string, error) {
	c := choice{of: of}
	for i, opt := range opts {
		if opt == nil {
			return "", fmt.Errorf("advertise: option %d of %d is nil", i+1, len(opts))
		}
		opt(&c)
	}
	own, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("advertise: listen address %q: want host:port: %w", listen, err)
	}
	if port, err = c.port(port); err != nil {
		return "", fmt.Errorf("advertise: listen address %q: %w", listen, err)
	}
	name, err := c.host(own)
	if err != nil {
		return "", fmt.Errorf("advertise: listen address %q: %w", listen, err)
	}
	return net.JoinHostPort(name, port), nil
}

// host is the machine, as far as it matters here.
type host interface {
	env(name string) string
	// addrs are the addresses of one interface, or of all where name is empty.
	addrs(name string) ([]netip.Addr, error)
	// outward is the address from which a network ("udp4" or "udp6") is reached.
	outward(network string) (netip.Addr, error)
}

type choice struct {
	of       host
	iface    string
	cidr     string
	loopback bool
}

func (c choice) port(own string) (string, error) {
	if port := c.of.env(PortEnv); port != "" {
		if !isPort(port) {
			return "", fmt.Errorf("%s is %q: want a port from 1 to 65535", PortEnv, port)
		}
		return port, nil
	}
	if !isPort(own) {
		return "", fmt.Errorf("port %q: want one from 1 to 65535, as the listener's own address has it", own)
	}
	return own, nil
}

func isPort(port string) bool {
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}

func (c choice) host(own string) (string, error) {
	if name := c.of.env(HostEnv); name != "" {
		return named(HostEnv, name)
	}
	ip, err := netip.ParseAddr(own)
	switch {
	case own != "" && err != nil:
		return c.byName(own)
	case own != "" && !ip.IsUnspecified():
		return c.usable(ip)
	}
	if name := c.of.env(PodIPEnv); name != "" {
		return c.podIP(name)
	}
	found, err := c.find(families(ip, own))
	if err != nil {
		return "", err
	}
	return c.usable(found)
}

// named is a host that the environment names.
func named(variable, name string) (string, error) {
	ip, _ := netip.ParseAddr(name) // not valid where it is a name
	switch {
	case !ip.IsValid() && !isName(name):
		return "", fmt.Errorf("%s is %q: want a host or an IP address, without a port", variable, name)
	case !ip.IsValid():
		return name, nil
	}
	host, err := choice{loopback: true}.usable(ip)
	if err != nil {
		return "", fmt.Errorf("%s is %q: %w", variable, name, err)
	}
	return host, nil
}

// isName reports whether it may be the name of a host.
func isName(name string) bool { return !strings.ContainsAny(name, "*:/[]@ \t\r\n") }

func (c choice) podIP(name string) (string, error) {
	ip, err := netip.ParseAddr(name)
	if err != nil {
		return "", fmt.Errorf("%s is %q: want an IP address", PodIPEnv, name)
	}
	return c.usable(ip)
}

func (c choice) byName(name string) (string, error) {
	switch {
	case !isName(name):
		return "", fmt.Errorf("host %q: want a name or an IP address", name)
	case strings.EqualFold(name, "localhost") && !c.loopback:
		return "", fmt.Errorf("only this machine can call %s", name)
	}
	return name, nil
}

// usable returns the address, if others can call it.
func (c choice) usable(ip netip.Addr) (string, error) {
	ip = ip.Unmap()
	switch {
	case ip.IsUnspecified() || ip.IsMulticast():
		return "", fmt.Errorf("nobody can call %s", ip)
	case ip.IsLinkLocalUnicast():
		return "", fmt.Errorf("%s is link-local: it means another machine elsewhere", ip)
	case ip.IsLoopback() && !c.loopback:
		return "", fmt.Errorf("only this machine can call %s", ip)
	}
	return ip.String(), nil
}

// families are the networks that a listener on this wildcard serves, the preferred one first.
func families(wildcard netip.Addr, own string) []string {
	if own != "" && wildcard.Is4() {
		return []string{"udp4"}
	}
	return []string{"udp4", "udp6"}
}

// find returns an address of the machine.
func (c choice) find(families []string) (netip.Addr, error) {
	if c.iface != "" || c.cidr != "" {
		return c.chosen(families)
	}
	var errs []error
	for _, family := range families {
		ip, err := c.of.outward(family)
		if err == nil && !ip.IsLoopback() && !ip.IsLinkLocalUnicast() {
			return ip, nil
		}
		errs = append(errs, cmp.Or(err, fmt.Errorf("%s leads nowhere", ip)))
	}
	if c.loopback {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1}), nil
	}
	return netip.Addr{}, fmt.Errorf("this machine has no route to others; set %s: %w", HostEnv, errors.Join(errs...))
}

// chosen returns the one address that the options leave.
func (c choice) chosen(families []string) (netip.Addr, error) {
	network := netip.Prefix{}
	if c.cidr != "" {
		var err error
		if network, err = netip.ParsePrefix(c.cidr); err != nil {
			return netip.Addr{}, fmt.Errorf("network %q: want CIDR notation, such as 10.0.0.0/8", c.cidr)
		}
	}
	all, err := c.of.addrs(c.iface)
	if err != nil {
		return netip.Addr{}, err
	}
	for _, family := range families {
		left := slices.DeleteFunc(slices.Clone(all), func(ip netip.Addr) bool {
			return ip.Is4() != (family == "udp4") || c.cidr != "" && !network.Contains(ip) || !c.isFit(ip)
		})
		switch {
		case len(left) == 1:
			return left[0], nil
		case len(left) > 1:
			return netip.Addr{}, fmt.Errorf("%s has several addresses, choose one: %v", c.place(), left)
		}
	}
	return netip.Addr{}, fmt.Errorf("%s has no address that others can call, among %v", c.place(), all)
}

func (c choice) isFit(ip netip.Addr) bool {
	_, err := c.usable(ip)
	return err == nil
}

// place is where an address was looked for.
func (c choice) place() string {
	switch {
	case c.cidr == "":
		return "interface " + c.iface
	case c.iface == "":
		return "network " + c.cidr
	default:
		return fmt.Sprintf("network %s on interface %s", c.cidr, c.iface)
	}
}

// machine is the real one.
type machine struct{}

func (machine) env(name string) string { return os.Getenv(name) }

func (machine) addrs(name string) ([]netip.Addr, error) {
	list := net.InterfaceAddrs
	if name != "" {
		iface, err := net.InterfaceByName(name)
		if err != nil {
			return nil, fmt.Errorf("interface %q: %w", name, err)
		}
		list = iface.Addrs
	}
	found, err := list()
	if err != nil {
		return nil, err
	}
	var all []netip.Addr
	for _, one := range found {
		if network, ok := one.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(network.IP); ok {
				all = append(all, ip.Unmap())
			}
		}
	}
	return all, nil
}

// outward asks the machine for its route to an address that is nobody's. Nothing is sent.
func (machine) outward(network string) (netip.Addr, error) {
	nobody := map[string]string{"udp4": "192.0.2.1:9", "udp6": "[2001:db8::1]:9"}[network]
	conn, err := new(net.Dialer).DialContext(context.Background(), network, nobody)
	if err != nil {
		return netip.Addr{}, err
	}
	defer conn.Close()
	local, err := netip.ParseAddrPort(conn.LocalAddr().String())
	return local.Addr().Unmap(), err
}
