// SPDX-License-Identifier: Apache-2.0

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"weft.dev/weft/tests/netlab"
)

// kubeAPI is as much of the Kubernetes API as a weftd needs, on the fabric of
// a lab: Nodes, which it lists, watches and lets be annotated, and ConfigMaps.
// What a real API server adds is the subject of tests/kube and tests/e2e.
type kubeAPI struct {
	url string

	mu      sync.Mutex
	version int
	nodes   map[string]object
	maps    map[string]map[string]string // data of those in kube-system
	changed chan struct{}                // closed and replaced at each change
	log     []change
}

type object = map[string]any

// change is one event of a watch.
type change struct {
	version int
	kind    string
	node    object
}

// newKubeAPI serves an empty cluster until the test ends.
func newKubeAPI(ctx context.Context, t *testing.T, l *netlab.Lab) *kubeAPI {
	t.Helper()
	k := &kubeAPI{nodes: map[string]object{}, maps: map[string]map[string]string{}, changed: make(chan struct{})}
	ln, err := l.Fabric().Listen(ctx, "tcp", ":0")
	must(t, err)
	k.url = fmt.Sprintf("http://%s", netip.AddrPortFrom(fabricIPv4(t), uint16(ln.Addr().(*net.TCPAddr).Port)))
	srv := &http.Server{Handler: k}
	go srv.Serve(ln) // ends with Close
	t.Cleanup(func() { srv.Close() })
	return k
}

// fabricIPv4 is the fabric's address, whose network namespace this process has.
func fabricIPv4(t *testing.T) netip.Addr {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	must(t, err)
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			return p.Addr()
		}
	}
	t.Fatalf("no IPv4 address among %v", addrs)
	return netip.Addr{}
}

// kubeconfig returns the content of a kubeconfig for the cluster.
func (k *kubeAPI) kubeconfig() string {
	return `{"apiVersion":"v1","kind":"Config","clusters":[{"name":"c","cluster":{"server":"` + k.url +
		`"}}],"contexts":[{"name":"c","context":{"cluster":"c","user":""}}],"current-context":"c"}`
}

// put makes name a Node with podCIDRs.
func (k *kubeAPI) put(name string, cidrs ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.set("ADDED", object{
		"metadata": object{"name": name, "uid": "uid-" + name, "annotations": object{}},
		"spec":     object{"podCIDR": cidrs[0], "podCIDRs": cidrs},
	})
}

// remove deletes a Node.
func (k *kubeAPI) remove(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.set("DELETED", k.nodes[name])
	delete(k.nodes, name)
}

// set makes node the state of the one of its name, and tells who watches.
func (k *kubeAPI) set(kind string, node object) {
	k.version++
	node = maps.Clone(node)
	meta := maps.Clone(node["metadata"].(object))
	meta["resourceVersion"] = fmt.Sprint(k.version)
	node["metadata"] = meta
	k.nodes[meta["name"].(string)] = node
	k.log = append(k.log, change{k.version, kind, node})
	close(k.changed)
	k.changed = make(chan struct{})
}

// ServeHTTP answers in JSON, which clients of the API always understand.
func (k *kubeAPI) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	path := strings.Split(strings.Trim(strings.TrimPrefix(r.URL.Path, "/api/v1"), "/"), "/")
	name := path[len(path)-1]
	switch q := r.URL.Query(); {
	case r.Method == http.MethodPatch:
		k.patch(w, r, path[1])
	case r.Method == http.MethodPost: // an Event
		_, _ = io.Copy(io.Discard, r.Body)
		answer(w, http.StatusCreated, object{"kind": "Event", "apiVersion": "v1", "metadata": object{"name": "e"}})
	case q.Get("sendInitialEvents") != "": // as an API server before 1.34 says
		answer(w, http.StatusUnprocessableEntity, object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Invalid", "code": 422})
	case q.Get("watch") != "":
		k.watch(w, r)
	case name == "nodes":
		k.list(w, r)
	case path[0] == "nodes":
		k.get(w, k.nodes, name, func(n object) object { return typed(n, false) })
	default:
		k.get(w, k.maps, name, func(data map[string]string) object {
			return object{"kind": "ConfigMap", "apiVersion": "v1", "metadata": object{"name": name}, "data": data}
		})
	}
}

func answer(w http.ResponseWriter, code int, doc object) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(doc) // whoever has gone needs no answer
}

// getting from one of k's maps is the same for all kinds.
func (k *kubeAPI) get(w http.ResponseWriter, from any, name string, as any) {
	k.mu.Lock()
	defer k.mu.Unlock()
	doc := object(nil)
	switch from := from.(type) {
	case map[string]object:
		if n, ok := from[name]; ok {
			doc = as.(func(object) object)(n)
		}
	case map[string]map[string]string:
		if data, ok := from[name]; ok {
			doc = as.(func(map[string]string) object)(data)
		}
	}
	if doc == nil {
		answer(w, http.StatusNotFound, object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})
		return
	}
	answer(w, http.StatusOK, doc)
}

// typed is a node as it is sent, whole or its metadata.
func typed(n object, metadata bool) object {
	if metadata {
		return object{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": n["metadata"]}
	}
	out := maps.Clone(n)
	out["kind"], out["apiVersion"] = "Node", "v1"
	return out
}

// wanted reports which nodes a request is about, and whether it asks for their
// metadata alone.
func wanted(r *http.Request) (about func(object) bool, metadata bool) {
	only, one := strings.CutPrefix(r.URL.Query().Get("fieldSelector"), "metadata.name=")
	return func(n object) bool { return !one || n["metadata"].(object)["name"] == only },
		strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")
}

func (k *kubeAPI) list(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	defer k.mu.Unlock()
	about, metadata := wanted(r)
	items := []object{}
	for _, n := range k.nodes {
		if about(n) {
			items = append(items, typed(n, metadata))
		}
	}
	kind, version := "NodeList", "v1"
	if metadata {
		kind, version = "PartialObjectMetadataList", "meta.k8s.io/v1"
	}
	answer(w, http.StatusOK, object{"kind": kind, "apiVersion": version, "metadata": object{"resourceVersion": fmt.Sprint(k.version)}, "items": items})
}

func (k *kubeAPI) watch(w http.ResponseWriter, r *http.Request) {
	about, metadata := wanted(r)
	var since int
	fmt.Sscan(r.URL.Query().Get("resourceVersion"), &since)
	out := json.NewEncoder(w)
	for {
		k.mu.Lock()
		log, changed := k.log, k.changed
		k.mu.Unlock()
		for _, c := range log {
			if c.version > since && about(c.node) {
				if out.Encode(object{"type": c.kind, "object": typed(c.node, metadata)}) != nil {
					return
				}
			}
			since = max(since, c.version)
		}
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

// patch takes over annotations; conditions are not what is tested here.
func (k *kubeAPI) patch(w http.ResponseWriter, r *http.Request, name string) {
	var doc struct {
		Metadata struct{ Annotations map[string]*string }
	}
	err := json.NewDecoder(r.Body).Decode(&doc)
	k.mu.Lock()
	defer k.mu.Unlock()
	n, ok := k.nodes[name]
	if err != nil || !ok {
		answer(w, http.StatusNotFound, object{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404})
		return
	}
	if len(doc.Metadata.Annotations) > 0 {
		n = maps.Clone(n)
		meta := maps.Clone(n["metadata"].(object))
		ann := maps.Clone(meta["annotations"].(object))
		for key, v := range doc.Metadata.Annotations {
			if v == nil {
				delete(ann, key)
			} else {
				ann[key] = *v
			}
		}
		meta["annotations"], n["metadata"] = ann, meta
		k.set("MODIFIED", n)
	}
	answer(w, http.StatusOK, typed(k.nodes[name], false))
}

// scattered returns podCIDRs of the n-th node: of no common network.
func scattered(n int) []string {
	return []string{fmt.Sprintf("10.%d.7.0/24", 100+n), fmt.Sprintf("fd00:%d::/64", 100+n)}
}
