package main

import (
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/discov-go/discov"
	"go.yaml.in/yaml/v4"
)

// localEtcd is where an etcd of our own serves when the port is free: it is what etcdctl and the client look for.
const localEtcd = "127.0.0.1:2379"

//go:embed etc/user.yaml
var defaultConfig []byte

// config is etc/user.yaml.
type config struct {
	Name     string `yaml:"Name"`
	ListenOn string `yaml:"ListenOn"`
	// AdminOn is where the status page and the metrics are. Empty means nowhere.
	AdminOn string        `yaml:"AdminOn"`
	Etcd    discov.Config `yaml:"Etcd"`
}

// parse reads the flags and the file that they name.
func parse(args []string, stderr io.Writer) (config, error) {
	flags := flag.NewFlagSet("userrpc", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	file := flags.String("f", "", "the config `file` (default: the built-in etc/user.yaml)")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			flags.SetOutput(stderr)
			flags.Usage()
		}
		return config{}, err
	}
	if flags.NArg() > 0 {
		return config{}, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if *file == "" {
		return load(defaultConfig, "etc/user.yaml")
	}
	data, err := os.ReadFile(*file)
	if err != nil {
		return config{}, err
	}
	return load(data, *file)
}

// load decodes and checks a config; name is for its errors.
func load(data []byte, name string) (config, error) {
	var c config
	if err := yaml.Load(data, &c, yaml.WithKnownFields()); err != nil {
		return config{}, fmt.Errorf("%s: %w", name, err)
	}
	if err := c.validate(); err != nil {
		return config{}, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

func (c config) validate() error {
	var errs []error
	if c.Name == "" {
		errs = append(errs, errors.New("empty Name"))
	}
	if c.ListenOn == "" {
		errs = append(errs, errors.New("empty ListenOn"))
	}
	etcd := c.Etcd
	if len(etcd.Hosts) == 0 {
		etcd.Hosts = []string{localEtcd}
	}
	return errors.Join(append(errs, etcd.Validate())...)
}
