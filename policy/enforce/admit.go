// SPDX-License-Identifier: Apache-2.0

package enforce

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"weft.dev/weft/policy"
	"weft.dev/weft/policy/kube"
)

// admission is one pod's start that waits.
type admission struct {
	pod   policy.Registered
	reply chan error // one slot
}

// Admit returns when the policies for an attachment's pod are in force: that
// of the sandbox with the ID container, which the ledger has. The error says
// what is missing; then nothing passes from or to the pod's addresses, unless
// no table was ever in force.
func (e *Enforcer) Admit(ctx context.Context, container string) error {
	local, err := e.o.Pods(ctx)
	if err != nil {
		return fmt.Errorf("this node's pods: %w", err)
	}
	i := slices.IndexFunc(local, func(r policy.Registered) bool { return r.Container == container })
	if i < 0 {
		return fmt.Errorf("container %.64q is not in the ledger", container)
	}
	r := local[i]
	if r.Name != "" {
		pod, err := e.o.Source.Pod(ctx, r.Namespace, r.Name, r.UID)
		switch {
		case errors.Is(err, kube.ErrNoPod):
			return fmt.Errorf("pod %s/%s: %w; it was deleted, or its sandbox is another cluster's", r.Namespace, r.Name, err)
		case err != nil:
			return fmt.Errorf("pod %s/%s: %w", r.Namespace, r.Name, err)
		}
		r.Pod = pod
	}
	a := admission{pod: r, reply: make(chan error, 1)}
	select {
	case <-ctx.Done():
		return fmt.Errorf("the agent is busy: %w", ctx.Err())
	case e.admits <- a:
	}
	select {
	case <-ctx.Done():
		return fmt.Errorf("policies are being brought into force: %w", ctx.Err())
	case err := <-a.reply:
		return err
	}
}

// verdict is the answer to a after a pass with the outcome st.
func verdict(a admission, st Status) error {
	if !st.InForce {
		return errors.New(st.Reason)
	}
	for _, addr := range a.pod.Addrs {
		if !st.Table.Known[addr.Unmap()] {
			return fmt.Errorf("address %s of pod %s/%s is not this pod's any more", addr, a.pod.Namespace, a.pod.Name)
		}
	}
	return nil
}

// known returns local with what the API has said of pods that were admitted,
// and forgets what it said of those that c has by now, or that are gone. What
// an older plugin wrote down without naming the pod is left to c where c has a
// pod on this node with its address: it would count as nobody's otherwise.
func (p *pass) known(c policy.Cluster, local []policy.Registered) []policy.Registered {
	for _, a := range p.waiting {
		p.early = append(p.early, a.pod)
	}
	in, theirs := map[[2]string]*policy.Pod{}, map[netip.Addr]bool{}
	for _, pod := range c.Pods {
		if pod.Node != p.o.Node {
			continue
		}
		in[[2]string{pod.Namespace, pod.Name}] = pod
		for _, a := range pod.Addrs {
			theirs[a] = theirs[a] || !pod.HostNetwork && !pod.Ended
		}
	}
	p.early = slices.DeleteFunc(p.early, func(r policy.Registered) bool {
		pod := in[[2]string{r.Namespace, r.Name}]
		has := r.Pod == nil || pod != nil && pod.UID == r.Pod.UID
		return has || !slices.ContainsFunc(local, func(l policy.Registered) bool { return l.Container == r.Container })
	})
	out := make([]policy.Registered, 0, len(local))
	for _, r := range local {
		if r.Name == "" && slices.ContainsFunc(r.Addrs, func(a netip.Addr) bool { return theirs[a.Unmap()] }) {
			continue
		}
		if i := slices.IndexFunc(p.early, func(o policy.Registered) bool { return o.Container == r.Container }); i >= 0 {
			r.Pod = p.early[i].Pod
		}
		out = append(out, r)
	}
	return out
}
