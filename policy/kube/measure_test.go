// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	k8sruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
)

const (
	// serverVar makes this test binary the process that is measured: it
	// watches the server at this URL and runs no tests.
	serverVar = "WEFT_POLICY_SERVER"
	// sizeVar is how many pods, and as many policies, TestMemory is to have.
	sizeVar = "WEFT_POLICY_SIZE"
)

func TestMain(m *testing.M) {
	if url := os.Getenv(serverVar); url != "" {
		if err := measured(context.Background(), url, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// figures are those of a process, in bytes.
type figures struct {
	When           string
	Pods, Policies int
	Live           uint64 // heap after a collection
	RSS, Peak      uint64
	Took           time.Duration
}

// measured watches the server, and reports before it does, then, and after all
// was listed again.
func measured(ctx context.Context, url string, to io.Writer) error {
	debug.SetGCPercent(50) // as the agent has
	report := json.NewEncoder(to)
	tell := func(when string, s Snapshot, took time.Duration) error {
		f := figures{When: when, Pods: len(s.Cluster.Pods), Policies: len(s.Cluster.Policies), Took: took}
		f.RSS, f.Peak = memory()
		var stats runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&stats)
		f.Live = stats.HeapAlloc
		runtime.KeepAlive(s)
		return report.Encode(f)
	}
	if err := tell("before", Snapshot{}, 0); err != nil {
		return err
	}
	src, err := New(Options{Server: url, Node: "n1"})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	got, start := make(chan Snapshot, 1), time.Now()
	go func() { _ = src.Watch(ctx, func(s Snapshot) { got <- s }) }() // ends with the process
	for _, when := range []string{"listed", "listed again"} {
		if err := tell(when, <-got, time.Since(start)); err != nil {
			return err
		}
		start = time.Now()
		r, err := http.Post(url+"/next", "", nil)
		if err != nil {
			return err
		}
		_ = r.Body.Close()
	}
	return nil
}

// memory returns what the process has in memory, and had at most.
func memory() (rss, peak uint64) {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		n := uint64(0)
		if len(words) > 1 {
			n, _ = strconv.ParseUint(words[1], 10, 64)
		}
		switch words[0] {
		case "VmRSS:":
			rss = n << 10
		case "VmHWM:":
			peak = n << 10
		}
	}
	return rss, peak
}

// TestMemory feeds another process with as many pods and policies as sizeVar
// says, and prints what it takes. Without it they are few, and only what is
// counted is judged: that protobuf of both ways of listing is understood.
func TestMemory(t *testing.T) {
	size, _ := strconv.Atoi(cmp.Or(os.Getenv(sizeVar), "1200"))
	for name, streams := range map[string]bool{"streamed": true, "paged": false} {
		t.Run(name, func(t *testing.T) {
			b := newBig(t, size, streams)
			srv := httptest.NewServer(b)
			defer srv.Close()
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), serverVar+"="+srv.URL)
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			srv.CloseClientConnections()
			must(t, err)
			t.Logf("CPU of both listings: %s", (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Round(time.Millisecond))
			var last figures
			for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
				must(t, d.Decode(&last))
				t.Logf("%-12s %d pods of %d bytes, %d policies: heap %.1f MiB, RSS %.1f MiB, peak %.1f MiB, %s", last.When, last.Pods, b.podSize, last.Policies,
					mib(last.Live), mib(last.RSS), mib(last.Peak), last.Took.Round(time.Millisecond))
			}
			if last.When != "listed again" || last.Pods != size || last.Policies != size {
				t.Errorf("the last report is %+v", last)
			}
			if peak := mib(last.Peak); size >= 30000 && peak > 150 {
				t.Errorf("peak of %.1f MiB, want at most 150", peak)
			}
		})
	}
}

func mib(n uint64) float64 { return float64(n) / (1 << 20) }

// big is an API server with many objects, which it makes as they are asked
// for. Each POST makes it forget what it has told, and one pod another.
type big struct {
	size    int
	streams bool
	podSize int
	info    k8sruntime.SerializerInfo
	next    [3]chan struct{} // closed by POSTs
	posts   int
}

func newBig(t *testing.T, size int, streams bool) *big {
	t.Helper()
	scheme := k8sruntime.NewScheme()
	must(t, corev1.AddToScheme(scheme))
	must(t, networkingv1.AddToScheme(scheme))
	metav1.AddToGroupVersion(scheme, metav1.SchemeGroupVersion)
	b := &big{size: size, streams: streams, next: [3]chan struct{}{make(chan struct{}), make(chan struct{}), make(chan struct{})}}
	var ok bool
	if b.info, ok = k8sruntime.SerializerInfoForMediaType(serializer.NewCodecFactory(scheme).SupportedMediaTypes(), k8sruntime.ContentTypeProtobuf); !ok {
		t.Fatal("no protobuf")
	}
	p := bigPod(1, 0)
	b.podSize = p.Size()
	return b
}

func (b *big) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		close(b.next[b.posts])
		b.posts++
		return
	}
	q, resource := r.URL.Query(), r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	gen := 0
	for ; gen < 2 && isClosed(b.next[gen]); gen++ {
	}
	w.Header().Set("Content-Type", k8sruntime.ContentTypeProtobuf)
	switch initial := q.Get("sendInitialEvents") != ""; {
	case initial && !b.streams:
		b.fail(w, http.StatusUnprocessableEntity, metav1.StatusReasonInvalid)
	case q.Get("watch") == "":
		b.list(w, resource, q.Get("continue"), gen)
	case !initial && q.Get("resourceVersion") != fmt.Sprint(gen+1):
		b.fail(w, http.StatusGone, metav1.StatusReasonExpired)
	default:
		b.watch(w, r, resource, initial, gen)
	}
}

func isClosed(c chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (b *big) fail(w http.ResponseWriter, code int, reason metav1.StatusReason) {
	w.WriteHeader(code)
	_ = b.info.Serializer.Encode(&metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Code: int32(code), Reason: reason}, w)
}

// count is how many there are of a resource.
func (b *big) count(resource string) int {
	if resource == "namespaces" {
		return b.size/100 + 1
	}
	return b.size
}

func (b *big) list(w io.Writer, resource, after string, gen int) {
	list := map[string]k8sruntime.Object{
		"pods":            &corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}},
		"namespaces":      &corev1.NamespaceList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "NamespaceList"}},
		"networkpolicies": &networkingv1.NetworkPolicyList{TypeMeta: metav1.TypeMeta{APIVersion: "networking.k8s.io/v1", Kind: "NetworkPolicyList"}},
	}[resource]
	first, _ := strconv.Atoi(after)
	last := min(first+pageSize, b.count(resource))
	var items []k8sruntime.Object
	for i := first; i < last; i++ {
		items = append(items, bigObject(resource, i, gen))
	}
	_ = meta.SetList(list, items)
	at, _ := meta.ListAccessor(list)
	at.SetResourceVersion(fmt.Sprint(gen + 1))
	if last < b.count(resource) {
		at.SetContinue(fmt.Sprint(last))
	}
	_ = b.info.Serializer.Encode(list, w)
}

func (b *big) watch(w http.ResponseWriter, r *http.Request, resource string, initial bool, gen int) {
	w.Header().Set("Content-Type", k8sruntime.ContentTypeProtobuf+";stream=watch")
	out := b.info.StreamSerializer.Framer.NewFrameWriter(w)
	send := func(kind string, o k8sruntime.Object) {
		raw, err := k8sruntime.Encode(b.info.Serializer, o)
		if err == nil {
			err = b.info.StreamSerializer.Encode(&metav1.WatchEvent{Type: kind, Object: k8sruntime.RawExtension{Raw: raw}}, out)
		}
		if err != nil {
			panic(http.ErrAbortHandler)
		}
	}
	if initial {
		for i := range b.count(resource) {
			send("ADDED", bigObject(resource, i, gen))
		}
		end := bigObject(resource, 0, gen).(metav1.Object)
		end.SetName("")
		end.SetNamespace("")
		end.SetResourceVersion(fmt.Sprint(gen + 1))
		end.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		send("BOOKMARK", end.(k8sruntime.Object))
	}
	w.(http.Flusher).Flush()
	select {
	case <-r.Context().Done():
	case <-b.next[gen]:
	}
}

// bigObject is the i-th of a resource: a hundred pods and policies a namespace,
// ten pods a Deployment.
func bigObject(resource string, i, gen int) k8sruntime.Object {
	name := fmt.Sprintf("team-%d", i/100)
	switch resource {
	case "namespaces":
		name = fmt.Sprintf("team-%d", i)
		return &corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
			ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"kubernetes.io/metadata.name": name, "stage": "production"}}}
	case "networkpolicies":
		return bigPolicy(name, i)
	}
	return bigPod(i, gen)
}
