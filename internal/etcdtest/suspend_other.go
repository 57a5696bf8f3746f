//go:build !unix

package etcdtest

import (
	"errors"
	"os"
)

func suspend(*os.Process) error { return errors.New("needs Unix signals") }

func resume(*os.Process) error { return nil } // nothing was suspended
