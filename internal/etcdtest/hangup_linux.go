package etcdtest

import (
	"os"
	"strconv"
	"syscall"
)

// hangUp ends every connection of this process from or to the port, so that whoever reads on it stops. The owners still
// close them. It is for connections that lie deep inside etcd, where nothing else reaches them, and for a port that
// belongs to a test; elsewhere than on Linux they end by themselves, after 5 s.
func hangUp(port int) {
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, entry := range fds {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		remote, err := syscall.Getpeername(fd)
		if err != nil {
			continue // no connection
		}
		local, err := syscall.Getsockname(fd)
		if err == nil && (portOf(local) == port || portOf(remote) == port) {
			syscall.Shutdown(fd, syscall.SHUT_RDWR)
		}
	}
}

func portOf(addr syscall.Sockaddr) int {
	switch a := addr.(type) {
	case *syscall.SockaddrInet4:
		return a.Port
	case *syscall.SockaddrInet6:
		return a.Port
	}
	return 0
}
