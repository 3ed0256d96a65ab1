// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"weft.dev/weft/subnet/kube"
)

const dualConf = `{"Network":"10.244.0.0/16","IPv6Network":"fd00:244::/48"}`

func writeConf(e *env, text string) error { return os.WriteFile(e.conf, []byte(text), 0o600) }

// vtep is a Node of annotations alone, written by hand.
func vtep(i int) map[string]string {
	return map[string]string{
		"weft.dev/kube-subnet-manager": "true", "weft.dev/backend-type": "vxlan", "weft.dev/subnets": fmt.Sprintf("10.244.%d.0/24", i),
		"weft.dev/backend-data": fmt.Sprintf(`{"VtepMAC":"02:00:00:00:04:%02x"}`, i), "weft.dev/public-ip": fmt.Sprintf("192.0.2.%d", i),
	}
}

func flannelVTEP(i int) map[string]string {
	out := map[string]string{}
	for k, v := range vtep(i) {
		if k != "weft.dev/subnets" {
			out["flannel.alpha.coreos.com/"+k[len("weft.dev/"):]] = v
		}
	}
	return out
}

func shown(i int) string { return fmt.Sprintf("n%d=10.244.%d.0/24@192.0.2.%d", i, i, i) }

func peers(e *env) {
	e.node("n2", vtep(2))
	w := e.watch(e.store("n1"))
	w.shows(shown(2))
	e.node("n3", nil, "10.244.3.0/24")
	e.node("n4", vtep(4))
	w.shows(shown(2), shown(4))
	n := w.count()
	for i := range 20 {
		e.beat("n2", i)
		e.beat("n3", i)
		e.patch("n2", fmt.Sprintf(`{"metadata":{"labels":{"beat":"%d"},"annotations":{"other/beat":"%d"}}}`, i, i))
	}
	e.patch("n2", `{"metadata":{"annotations":{"weft.dev/backend-data":"{"}}}`)
	w.shows(shown(2), shown(4), "JunkLease:n2")
	if w.count() != n+1 {
		e.Errorf("%d snapshots for 60 heartbeats", w.count()-n-1)
	}
	e.patch("n2", `{"metadata":{"annotations":{"weft.dev/backend-data":"{\"VtepMAC\":\"02:00:00:00:04:77\"}"}}}`)
	w.shows(shown(2), shown(4))
	e.delete("n4")
	w.shows(shown(2))
}

func flannels(e *env) {
	e.node("n2", flannelVTEP(2), "10.244.2.0/24")
	e.node("n3", flannelVTEP(3)) // has no podCIDR yet
	weft := e.watch(e.store("n1"))
	weft.shows(shown(2), "JunkLease:n3")
	flannel := e.watch(e.store("n1", func(o *kube.Options) { o.Flannel = true }))
	flannel.shows(shown(2), "JunkLease:n3")
	e.patch("n3", `{"spec":{"podCIDR":"10.244.3.0/24","podCIDRs":["10.244.3.0/24"]}}`)
	weft.shows(shown(2), shown(3))
	flannel.shows(shown(2), shown(3))
}

// TestServerRestarts takes the API server away with what it remembers: a Node
// goes meanwhile, and the history that tells of it is compacted. Watchers must
// list again; what they miss would stay in kernels for ever.
func TestServerRestarts(t *testing.T) {
	e := newEnv(t)
	for i := 2; i <= 5; i++ {
		e.node(fmt.Sprint("n", i), vtep(i))
	}
	e.node("n1", nil, "10.244.1.0/24", "fd00:244:0:1::/64")
	s := e.store("n1")
	e.hold(s, "n1", 1).granted("10.244.1.0/24", "fd00:244:0:1::/64")
	w := e.watch(s)
	own := "n1=10.244.1.0/24@192.0.2.1+fd00:244:0:1::/64@2001:db8::1"
	w.shows(own, shown(2), shown(3), shown(4), shown(5))

	e.srv.Stop()
	e.reason(s, "waiting for the Kubernetes API")
	c, err := e.srv.Etcd.Client()
	e.check(err)
	defer c.Close()
	ctx, cancel := context.WithTimeout(e.Context(), 10*time.Second)
	defer cancel()
	gone, err := c.Delete(ctx, "/registry/minions/n3")
	e.check(err)
	if gone.Deleted != 1 {
		e.Fatalf("deleted %d keys", gone.Deleted)
	}
	_, err = c.Compact(ctx, gone.Header.Revision, clientv3.WithCompactPhysical())
	e.check(err)
	e.check(e.srv.Start(e.Context()))
	w.shows(own, shown(2), shown(4), shown(5))
	e.eventually("no Reason", func() bool { return s.Reason() == "" })
	if w.lacked("n2", 0) || w.lacked("n1", 1) {
		e.Error("others were lost meanwhile")
	}
	e.node("n6", vtep(6))
	w.shows(own, shown(2), shown(4), shown(5), shown(6))
}
