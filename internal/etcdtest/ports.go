package etcdtest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"testing"
	"time"
)

// FreeAddr returns an address on the loopback interface that is this test's until its end, also while nothing listens on
// it.
func FreeAddr(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", reservePort(t))
}

// reservePort returns a TCP port of 127.0.0.1 that is this test's until its end, also while nothing listens on it.
//
// The reservation is the UDP port of the same number: other processes with this package see it taken, and the system
// frees it with the process. The range lies below the one that the system takes ports of outgoing connections from.
func reservePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := 10000 + rand.IntN(22000)
		addr := fmt.Sprintf("127.0.0.1:%d", port)
		held, err := net.ListenPacket("udp4", addr)
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp4", addr)
		if err != nil {
			held.Close()
			continue
		}
		l.Close()
		t.Cleanup(func() { held.Close() })
		return port
	}
	t.Fatal("etcdtest: no free port")
	return 0
}

// responds reports whether a server answers HTTP at the address, whatever it says.
func responds(addr string) bool {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: time.Second}
	resp, err := client.Get("http://" + addr + countsPath)
	if err == nil {
		resp.Body.Close()
	}
	return err == nil
}
