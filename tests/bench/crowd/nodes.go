// SPDX-License-Identifier: Apache-2.0

package crowd

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/rest"

	"weft.dev/weft/subnet"
)

// registered is a Node as a kubelet of 1.37 has registered it, a controller
// manager has given it podCIDRs and an agent has annotated it, with all that the
// server keeps of who wrote what:
//
//	weft-e2e up --nodes 1 && weft-e2e kubectl get node n1 -o json --show-managed-fields
//
//go:embed node.json
var registered []byte

// imagesOnNode is how many images a kubelet lists (--node-status-max-images).
const imagesOnNode = 50

// KubeDual is Dual for the Node API, where the controller manager cuts subnets.
const KubeDual = `{"Network":"10.0.0.0/8","IPv6Network":"fd42::/48","Backend":{"Type":"vxlan"}}`

// Model returns the Node that the crowd is made of, with as many images as a
// kubelet lists.
func Model() (*corev1.Node, error) {
	n := &corev1.Node{}
	if err := json.Unmarshal(registered, n); err != nil {
		return nil, fmt.Errorf("the model of a Node: %w", err)
	}
	for i := len(n.Status.Images); i < imagesOnNode; i++ {
		digest := fmt.Sprintf("%064x", i+1)
		n.Status.Images = append(n.Status.Images, corev1.ContainerImage{SizeBytes: int64(i+1) << 20, Names: []string{
			"registry.example.com/team/application-" + digest[60:] + "@sha256:" + digest, "registry.example.com/team/application-" + digest[60:] + ":v1.2.3"}})
	}
	return n, nil
}

// NodeName is what the peer's Node is called.
func (p Peer) NodeName() string { return fmt.Sprintf("worker-%05d.example.com", p.N) }

// lease is what the peer's agent publishes.
func (p Peer) lease() (map[string]string, error) {
	l := subnet.Lease{Node: p.NodeName(), Instance: fmt.Sprintf("%032x", p.N+1), Backend: subnet.BackendVXLAN}
	for _, f := range p.Families() {
		l.Paths = append(l.Paths, subnet.Path{Subnet: p.Subnet(f), Underlay: p.Underlay(f), MAC: p.MAC(f), VNI: 1})
	}
	return subnet.EncodeNode(subnet.Domain, l)
}

// Writers are those that write on Nodes, each under the name by which the
// server remembers what it wrote.
type Writers struct{ Kubelet, Controllers, Agent *rest.RESTClient }

// Register makes a Node like model as a cluster makes one: its kubelet, then the
// controller manager, then, if there is a lease, weft, then the kubelet again.
// So the server keeps of it what it keeps of a real one.
func (w Writers) Register(ctx context.Context, model *corev1.Node, name string, podCIDRs []netip.Prefix, addrs []netip.Addr, lease map[string]string) error {
	first := newborn(model, name, addrs)
	if err := w.Kubelet.Post().Resource("nodes").Body(first).Do(ctx).Error(); err != nil {
		return fmt.Errorf("make Node %s: %w", name, err)
	}
	grown := first.DeepCopy()
	grown.Annotations["node.alpha.kubernetes.io/ttl"] = "0"
	for _, c := range podCIDRs {
		grown.Spec.PodCIDRs = append(grown.Spec.PodCIDRs, c.String())
	}
	grown.Spec.PodCIDR = grown.Spec.PodCIDRs[0]
	if err := change(ctx, w.Controllers, first, grown); err != nil {
		return err
	}
	if lease != nil {
		leased := grown.DeepCopy()
		maps.Copy(leased.Annotations, lease)
		for _, c := range model.Status.Conditions {
			if !kubelets(c.Type) {
				leased.Status.Conditions = append(leased.Status.Conditions, c)
			}
		}
		if err := change(ctx, w.Agent, grown, leased, "status"); err != nil {
			return err
		}
		grown = leased
	}
	ready := grown.DeepCopy()
	ready.Status.Images = model.Status.Images
	for i, c := range ready.Status.Conditions {
		if at := slices.IndexFunc(model.Status.Conditions, func(m corev1.NodeCondition) bool { return m.Type == c.Type }); at >= 0 {
			ready.Status.Conditions[i] = model.Status.Conditions[at]
		}
	}
	return change(ctx, w.Kubelet, grown, ready, "status")
}

// newborn is model as its kubelet makes it: not ready, with few images, and
// without what others write.
func newborn(model *corev1.Node, name string, addrs []netip.Addr) *corev1.Node {
	const attach = "volumes.kubernetes.io/controller-managed-attach-detach"
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: maps.Clone(model.Labels), Annotations: map[string]string{attach: model.Annotations[attach]}}}
	n.Labels["kubernetes.io/hostname"] = name
	model.Status.DeepCopyInto(&n.Status)
	n.Status.Images = n.Status.Images[:1]
	n.Status.Conditions = nil
	for _, c := range model.Status.Conditions {
		if c.LastHeartbeatTime.Time = c.LastHeartbeatTime.Add(-time.Minute); c.Type == corev1.NodeReady {
			c.Status, c.Reason, c.Message = corev1.ConditionFalse, "KubeletNotReady", "container runtime network not ready: cni plugin not initialized"
			c.LastTransitionTime.Time = c.LastTransitionTime.Add(-time.Minute)
		}
		if kubelets(c.Type) {
			n.Status.Conditions = append(n.Status.Conditions, c)
		}
	}
	n.Status.Addresses = nil
	for _, a := range addrs {
		n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a.String()})
	}
	n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeHostName, Address: name})
	return n
}

// change patches what differs between two states of a Node.
func change(ctx context.Context, c *rest.RESTClient, was, is *corev1.Node, sub ...string) error {
	patch, err := difference(was, is)
	if err != nil {
		return err
	}
	if err := c.Patch(types.StrategicMergePatchType).Resource("nodes").Name(is.Name).SubResource(sub...).Body(patch).Do(ctx).Error(); err != nil {
		return fmt.Errorf("change Node %s: %w", is.Name, err)
	}
	return nil
}

func difference(was, is *corev1.Node) ([]byte, error) {
	before, err := json.Marshal(was)
	if err != nil {
		return nil, err
	}
	after, err := json.Marshal(is)
	if err != nil {
		return nil, err
	}
	return strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Node{})
}

// EnrolNodes makes the Nodes of the first n peers, some at a time.
func (w Writers) EnrolNodes(ctx context.Context, model *corev1.Node, n int, dual bool) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for i := range n {
		g.Go(func() error {
			p := Peer{N: i, Dual: dual}
			lease, err := p.lease()
			if err != nil {
				return err
			}
			var cidrs []netip.Prefix
			var addrs []netip.Addr
			for _, f := range p.Families() {
				cidrs, addrs = append(cidrs, p.Subnet(f)), append(addrs, p.Underlay(f))
			}
			return w.Register(ctx, model, p.NodeName(), cidrs, addrs, lease)
		})
	}
	return g.Wait()
}

// Fields lists what the server keeps of who wrote which field of a Node, sorted,
// without the values that are in it.
func Fields(n *corev1.Node) []string {
	value := regexp.MustCompile(`"v:(\\.|[^"\\])*":`)
	var out []string
	for _, m := range n.ManagedFields {
		var b bytes.Buffer
		if m.FieldsV1 == nil || json.Compact(&b, m.FieldsV1.GetRawBytes()) != nil {
			continue // the server writes nothing else
		}
		out = append(out, m.Manager+" "+m.Subresource+" "+value.ReplaceAllString(b.String(), `"v:":`))
	}
	slices.Sort(out)
	return out
}

// Heartbeat is the patch of nodes/status that a kubelet sends every few minutes
// when nothing has changed: made as it makes it, from what it knows of its Node
// and the times of its conditions.
func Heartbeat(n *corev1.Node, now time.Time) ([]byte, error) {
	next := n.DeepCopy()
	for i := range next.Status.Conditions {
		if c := &next.Status.Conditions[i]; kubelets(c.Type) {
			c.LastHeartbeatTime = metav1.NewTime(now)
		}
	}
	return difference(n, next)
}

// kubelets reports whether a condition is one that kubelets keep.
func kubelets(c corev1.NodeConditionType) bool {
	switch c {
	case corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure:
		return true
	}
	return false
}

// Beat sends one heartbeat of a Node, as its kubelet.
func Beat(ctx context.Context, kubelet *rest.RESTClient, node string, patch []byte) error {
	err := kubelet.Patch(types.StrategicMergePatchType).Resource("nodes").Name(node).SubResource("status").Body(patch).Do(ctx).Error()
	if err != nil {
		return fmt.Errorf("heartbeat of Node %s: %w", node, err)
	}
	return nil
}
