package discov

import (
	"encoding/json"
	"fmt"

	"github.com/discov-go/discov/internal/conn"
)

// GRPCValue returns the value under which gRPC's official etcd resolver, go.etcd.io/etcd/client/v3/naming/resolver, finds addr
// with metadata, which may be nil: byte for byte what the endpoint manager beside it writes. Publish it with any key, and dial
// etcd:///<key>. It returns an error that wraps ErrValue if addr is not host:port, or cannot be called by others, or if metadata
// cannot be encoded as JSON.
func GRPCValue(addr string, metadata any) (string, error) {
	if isNowhere(addr) {
		return "", fmt.Errorf("discov: %w: address %q is one to listen on, not to call", ErrValue, addr)
	}
	if err := conn.CheckHostPort(addr); err != nil {
		return "", fmt.Errorf("discov: %w: address %q: %w", ErrValue, addr, err)
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
