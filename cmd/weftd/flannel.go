// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"weft.dev/weft/subnet"
)

// flannelFlags are the flags of flanneld (flannel v0.28, main.go) that weftd
// does not have itself. With --flannel-compat they are accepted, so that a
// node can be switched by replacing the binary: those with a counterpart set
// it, those that only tune flannel's inner workings have no effect and are
// named once in the log, and those that ask for something weftd cannot do
// are refused, because starting without it would break the node's pods.
type flannelFlags struct {
	renewMargin int
	healthzIP   string
	healthzPort int
	kube        bool
	kubeconfig  string
	netConf     string
	conditions  bool
	verbosity   int
}

func (fl *flannelFlags) define(o *options, f *pflag.FlagSet) {
	f.IntVar(&fl.renewMargin, "subnet-lease-renew-margin", 60, "flannel: --lease-renew-margin in minutes, 1 to 1439")
	f.StringVar(&fl.healthzIP, "healthz-ip", "0.0.0.0", "flannel: address of --listen")
	f.IntVar(&fl.healthzPort, "healthz-port", 0, "flannel: port of --listen; 0 keeps --listen")
	f.BoolVar(&fl.kube, "kube-subnet-mgr", false, "flannel: --store=kube")
	f.StringVar(&o.KubeAPI, "kube-api-url", "", "flannel: URL of the API server; empty means that of --kubeconfig or of this pod")
	f.StringVar(&fl.kubeconfig, "kubeconfig-file", "", "flannel: --kubeconfig")
	f.StringVar(&o.Prefix, "kube-annotation-prefix", subnet.FlannelAnnotationPrefix, "flannel: prefix of the Node annotations")
	f.StringVar(&fl.netConf, "net-config-path", "", "flannel: --net-conf")
	f.BoolVar(&fl.conditions, "set-node-network-unavailable", true, "flannel: keep the conditions of this node's Node")
	f.IntVar(&fl.verbosity, "v", 0, "flannel: klog verbosity; 4 and more is --log-level debug")
	for _, name := range ignoredStrings() {
		f.String(name, "", "flannel: accepted without effect")
	}
	for _, name := range ignoredBools() {
		f.Bool(name, false, "flannel: accepted without effect")
	}
}

func ignoredStrings() []string {
	return []string{"iptables-resync", "vmodule", "log_backtrace_at"}
}

func ignoredBools() []string {
	return []string{"iptables-forward-rules", "ip-blackhole-route", "ip-masq-fully-random-disable"}
}

// apply carries flannel's settings over into o and r. flannel speaks
// plaintext to etcd wherever it is, so the preset allows that.
func (fl *flannelFlags) apply(o *options, r *raw) error {
	o.EtcdInsecure = true
	o.Conditions = fl.conditions
	for _, same := range []struct {
		flag, ours string
		to         *string
		value      string
	}{{"kubeconfig-file", "kubeconfig", &o.Kubeconfig, fl.kubeconfig}, {"net-config-path", "net-conf", &o.NetConf, fl.netConf}} {
		if same.value != "" {
			*same.to, o.origin[same.ours] = same.value, o.origin[same.flag]
		}
	}
	if fl.kube {
		o.Store, o.origin["store"] = storeKube, o.origin["kube-subnet-mgr"]
	}
	if fl.renewMargin < 1 || fl.renewMargin > 1439 {
		return fmt.Errorf("subnet-lease-renew-margin (%s): value %d: want 1 to 1439 minutes", o.origin["subnet-lease-renew-margin"], fl.renewMargin)
	}
	if o.origin["subnet-lease-renew-margin"] != "default" {
		o.RenewMargin = time.Duration(fl.renewMargin) * time.Minute
	}
	if fl.healthzPort < 0 || fl.healthzPort > 65535 {
		return fmt.Errorf("healthz-port (%s): value %d: want 0 to 65535", o.origin["healthz-port"], fl.healthzPort)
	}
	if fl.healthzPort != 0 {
		o.Listen = net.JoinHostPort(fl.healthzIP, strconv.Itoa(fl.healthzPort))
		o.origin["listen"] = o.origin["healthz-port"]
	}
	if fl.verbosity >= 4 && o.origin["log-level"] == "default" {
		r.logLevel = "debug"
	}
	for _, name := range append(ignoredStrings(), ignoredBools()...) {
		if o.origin[name] != "default" {
			o.notes = append(o.notes, o.origin[name]+" has no effect in weft")
		}
	}
	return nil
}

// wantsFlannel reports whether the preset is on. It is read before all other
// flags, because their defaults and their syntax depend on it.
func wantsFlannel(args []string, env map[string]string) (bool, error) {
	for _, a := range args {
		name, val, hasVal := strings.Cut(a, "=")
		if a == "--" {
			break
		}
		if name != "--flannel-compat" && name != "-flannel-compat" {
			continue
		}
		if !hasVal {
			return true, nil
		}
		on, err := strconv.ParseBool(val)
		if err != nil {
			return false, fmt.Errorf("flannel-compat (flag %s): value %q: want true or false", name, val)
		}
		return on, nil
	}
	val, ok := env[envPrefix+"FLANNEL_COMPAT"]
	if !ok {
		return false, nil
	}
	on, err := strconv.ParseBool(val)
	if err != nil {
		return false, fmt.Errorf("environment %sFLANNEL_COMPAT: value %q: want true or false", envPrefix, val)
	}
	return on, nil
}

// doubleDashes rewrites -flag as --flag: Go's flag package, which flanneld
// uses, takes both.
func doubleDashes(args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		if strings.HasPrefix(a, "-") && !strings.HasPrefix(a, "--") && len(a) > 1 && a != "-h" {
			a = "-" + a
		}
		out[i] = a
	}
	return out
}
