package discov

import (
	"encoding/json"
	"fmt"
	"net"
)

// GRPCValue returns the value under which gRPC's official etcd resolver, go.etcd.io/etcd/client/v3/naming/resolver, finds addr
// with metadata, which may be nil: byte by byte what the endpoint manager beside it writes. Publish it with any key, and dial
// etcd:///<key>. An error wraps ErrValue: addr is not host:port, or is one that nobody can call, or metadata is no JSON.
func GRPCValue(addr string, metadata any) (string, error) {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return "", fmt.Errorf("discov: %w: address %q: %w", ErrValue, addr, err)
	}
	if isNowhere(addr) {
		return "", fmt.Errorf("discov: %w: address %q is one to listen on, not to call", ErrValue, addr)
	}
	value, err := json.Marshal(struct {
		Op       uint8 // 0, to add it
		Addr     string
		Metadata any
	}{Addr: addr, Metadata: metadata})
	if err != nil {
		return "", fmt.Errorf("discov: %w: metadata of %q: %w", ErrValue, addr, err)
	}
	return string(value), nil
}
