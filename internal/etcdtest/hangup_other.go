//go:build !linux

package etcdtest

func hangUp(int) {}
