// SPDX-License-Identifier: Apache-2.0

package cases

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"weft.dev/weft/tests/e2e/cluster"
	"weft.dev/weft/tests/e2e/parts"
	"weft.dev/weft/tests/netlab"
)

const (
	agentProgram = "/bin/weftd" // in the image
	agentLabel   = "app.kubernetes.io/name=weft"
	agentSystem  = "kube-system" // the agent's namespace
)

// Faults are the cases in which something breaks. outage is how long the API
// server is away.
func Faults(outage time.Duration) []Case {
	return []Case{
		{Name: "a rollout of the agents and the way back lose nothing", Run: rollout, Weft: true},
		{Name: "kill -9 of every agent loses nothing", Run: killAgents, Weft: true},
		{Name: "kubelet and containerd restarted: nothing lost", Run: restartKubelet},
		{Name: "the ConfigMap is followed: a wrong one changes nothing, direct routes come and go, nothing lost", Run: followConfig, Weft: true},
		{Name: "a default route that leads elsewhere: the node stays where kubelet says, nothing lost", Run: strayRoute, Weft: true},
		{Name: "annotations wiped: they are back, nothing lost", Run: wipeAnnotations, Weft: true},
		{Name: "one node cannot have its device: it alone is tainted, and cleared after", Run: loseDevice, Weft: true},
		{Name: "API server away: nothing lost, and a pod that is asked for meanwhile works after", Weft: true,
			Run: func(ctx context.Context, c *cluster.Cluster) error { return loseAPI(ctx, c, outage) }},
		{Name: "a Node deleted and registered anew works, the others lose nothing", Run: readdNode, Weft: true},
	}
}

// agents returns the agents' pods, one on each node, all ready.
func agents(ctx context.Context, c *cluster.Cluster) ([]cluster.Pod, error) {
	pods, err := c.Pods(ctx, agentSystem, agentLabel)
	if err != nil {
		return nil, err
	}
	if len(pods) != len(c.Nodes()) {
		return nil, fmt.Errorf("%d agents on %d nodes", len(pods), len(c.Nodes()))
	}
	for _, p := range pods {
		if !p.Ready {
			return nil, fmt.Errorf("agent %s on %s is not ready", p.Name, p.Node)
		}
	}
	return pods, nil
}

// rollout does what docs/upgrade.md says: the DaemonSet replaces all of its pods
// twice.
func rollout(ctx context.Context, c *cluster.Cluster) error {
	return underTraffic(ctx, c, nil, func(ctx context.Context) error {
		return follow(ctx, c, c.Fabric(), "docs/upgrade.md", "restart", "rollback")
	})
}

// killAgents kills all agents at once; kubelet starts them again.
func killAgents(ctx context.Context, c *cluster.Cluster) error {
	return underTraffic(ctx, c, nil, func(ctx context.Context) error {
		before, err := agents(ctx, c)
		if err != nil {
			return err
		}
		for _, p := range before {
			if err := signal(p, agentProgram, syscall.SIGKILL); err != nil {
				return err
			}
		}
		return eventually(ctx, 2*time.Minute, func(ctx context.Context) error {
			after, err := agents(ctx, c)
			if err != nil {
				return err
			}
			restarts := map[string]int{}
			for _, p := range after {
				restarts[p.UID] = p.Restarts
			}
			for _, p := range before {
				if restarts[p.UID] <= p.Restarts {
					return fmt.Errorf("agent %s on %s has not been started again", p.Name, p.Node)
				}
			}
			return nil
		})
	})
}

// signal sends a signal to a pod's program.
func signal(p cluster.Pod, program string, sig syscall.Signal) error {
	ours, err := p.PIDs()
	if err != nil {
		return err
	}
	var errs []error
	n := 0
	for _, pid := range ours {
		if !cluster.WithProgram(program)(fmt.Sprintf("/proc/%d", pid)) {
			continue
		}
		n++
		errs = append(errs, syscall.Kill(pid, sig))
	}
	if n == 0 {
		return fmt.Errorf("pod %s on %s has no process of %s", p.Name, p.Node, program)
	}
	return errors.Join(errs...)
}

// restartKubelet restarts kubelet and containerd on all nodes.
func restartKubelet(ctx context.Context, c *cluster.Cluster) error {
	return underTraffic(ctx, c, nil, func(ctx context.Context) error {
		for _, n := range c.Nodes() {
			if err := n.RestartDaemons(ctx); err != nil {
				return err
			}
		}
		if err := c.WaitReady(ctx, time.Minute); err != nil {
			return err
		}
		return newPod(ctx, c)
	})
}

// newPod has a pod started and deleted.
func newPod(ctx context.Context, c *cluster.Cluster) error {
	if _, err := c.Kubectl(ctx, "run", "new", "--image="+parts.AgnhostImage, "--image-pull-policy=Never", "--grace-period=1", "--", "pause"); err != nil {
		return err
	}
	_, err := c.Kubectl(ctx, "wait", "--for=condition=Ready", "pod/new", "--timeout=60s")
	_, deleted := c.Kubectl(ctx, "delete", "pod", "new", "--wait=true", "--grace-period=1")
	return errors.Join(err, deleted)
}

// wipeAnnotations removes what weft has published from all Nodes.
func wipeAnnotations(ctx context.Context, c *cluster.Cluster) error {
	return underTraffic(ctx, c, nil, func(ctx context.Context) error {
		for _, n := range c.Nodes() {
			before, err := published(ctx, c, n.Name())
			if err != nil {
				return err
			}
			args := []string{"annotate", "node", n.Name()}
			for k := range before {
				args = append(args, k+"-")
			}
			if len(before) == 0 {
				return fmt.Errorf("%s has no annotations of weft", n.Name())
			}
			if _, err := c.Kubectl(ctx, args...); err != nil {
				return err
			}
			err = eventually(ctx, 10*time.Second, func(ctx context.Context) error {
				after, err := published(ctx, c, n.Name())
				if err != nil {
					return err
				}
				for k, v := range before {
					if after[k] != v {
						return fmt.Errorf("annotation %s of %s is %q, was %q", k, n.Name(), after[k], v)
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// published returns what weft has written on a Node.
func published(ctx context.Context, c *cluster.Cluster, node string) (map[string]string, error) {
	var o struct {
		Metadata struct{ Annotations map[string]string }
	}
	if err := c.GetJSON(ctx, "/api/v1/nodes/"+node, &o); err != nil {
		return nil, err
	}
	out := map[string]string{}
	for k, v := range o.Metadata.Annotations {
		if strings.HasPrefix(k, "weft.dev/") {
			out[k] = v
		}
	}
	return out, nil
}

// squatter has the VNI and port of weft's device on a node, so that the kernel
// refuses weft's.
const squatter = "squatter"

// loseDevice takes a node's device away and keeps weft from making it anew.
func loseDevice(ctx context.Context, c *cluster.Cluster) error {
	victim := c.Nodes()[1]
	unaffected := func(n *cluster.Node) bool { return n != victim }
	return underTraffic(ctx, c, unaffected, func(ctx context.Context) error {
		if err := squat(ctx, c, victim); err != nil {
			return err
		}
		if err := tainted(ctx, c, victim.Name(), true); err != nil {
			return err
		}
		if _, err := victim.Run(ctx, "ip", "link", "del", squatter); err != nil {
			return err
		}
		return tainted(ctx, c, victim.Name(), false)
	})
}

// squat puts a device of somebody else's in the place of weft's. The agent is
// halted meanwhile, it would be faster.
func squat(ctx context.Context, c *cluster.Cluster, victim *cluster.Node) error {
	pods, err := agents(ctx, c)
	if err != nil {
		return err
	}
	at := slices.IndexFunc(pods, func(p cluster.Pod) bool { return p.Node == victim.Name() })
	if err := signal(pods[at], agentProgram, syscall.SIGSTOP); err != nil {
		return err
	}
	local, device := victim.Addrs()[0], "weft.1"
	if local.Is6() {
		device = "weft6.1"
	}
	_, gone := victim.Run(ctx, "ip", "link", "del", device)
	_, err = victim.Run(ctx, "ip", "link", "add", squatter, "type", "vxlan", "id", "1", "dstport", "8472",
		"local", local.String(), "dev", "eth0", "nolearning")
	return errors.Join(gone, err, signal(pods[at], agentProgram, syscall.SIGCONT))
}

// tainted waits until a node is tainted as without network, or no longer, and
// checks that no other one is.
func tainted(ctx context.Context, c *cluster.Cluster, node string, want bool) error {
	const taint = "node.kubernetes.io/network-unavailable:NoSchedule"
	return eventually(ctx, time.Minute, func(ctx context.Context) error {
		states, err := c.NodeStates(ctx)
		if err != nil {
			return err
		}
		var errs []error
		for _, s := range states {
			has := false
			for _, t := range s.Taints {
				has = has || t == taint
			}
			if has != (want && s.Name == node) {
				errs = append(errs, fmt.Errorf("%s has taints %v", s.Name, s.Taints))
			}
		}
		return errors.Join(errs...)
	})
}

// staticManifest is a pod that kubelet starts by itself.
const staticManifest = `apiVersion: v1
kind: Pod
metadata: {name: meanwhile, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: ` + parts.AgnhostImage + `
    imagePullPolicy: Never
    args: [netexec, --http-port=8099]
`

// loseAPI kills the API server, and asks for a pod while it is away. No policy
// can be known for a pod that the API has never had, so it starts afterwards.
func loseAPI(ctx context.Context, c *cluster.Cluster, outage time.Duration) error {
	sites, err := web(ctx, c)
	if err != nil {
		return err
	}
	defer closeAll(sites)
	n := c.Nodes()[0]
	defer n.StaticPod("meanwhile", "") // gone already if all went well
	return underTraffic(ctx, c, nil, func(ctx context.Context) error {
		if err := c.APIServer.Stop(ctx, syscall.SIGKILL); err != nil {
			return err
		}
		over := time.Now().Add(outage)
		err := n.StaticPod("meanwhile", staticManifest)
		if err == nil {
			err = netlab.Pause(ctx, time.Until(over))
		}
		if err := errors.Join(err, c.APIServer.Start(ctx)); err != nil { // other cases need it
			return err
		}
		err = eventually(ctx, 2*time.Minute, func(ctx context.Context) error { return reachStatic(ctx, sites[1].Place) })
		if err != nil {
			return fmt.Errorf("pod that was asked for while the API server was away: %w", err)
		}
		if err := n.StaticPod("meanwhile", ""); err != nil {
			return err
		}
		return eventually(ctx, 2*time.Minute, func(ctx context.Context) error {
			if _, err := agents(ctx, c); err != nil {
				return err
			}
			return c.WaitReady(ctx, time.Second)
		})
	})
}

// reachStatic connects to the pod of staticManifest on all of its addresses.
func reachStatic(ctx context.Context, from *netlab.Place) error {
	pids, err := cluster.Processes(cluster.WithArgument("--http-port=8099"))
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		return errors.New("it has no process yet")
	}
	place, err := netlab.PlaceOf("meanwhile", pids[0])
	if err != nil {
		return err
	}
	defer place.Close()
	addrs, err := addresses(place, "eth0")
	if err != nil {
		return err
	}
	if len(addrs) == 0 {
		return errors.New("it has no address")
	}
	for _, a := range addrs {
		conn, err := from.Dial(ctx, "tcp", netip.AddrPortFrom(a, 8099).String())
		if err != nil {
			return err
		}
		conn.Close()
	}
	return nil
}

// readdNode deletes a Node and has its kubelet register it anew: with another
// UID, and other podCIDRs.
func readdNode(ctx context.Context, c *cluster.Cluster) error {
	victim := c.Nodes()[len(c.Nodes())-1]
	before, err := c.Node(ctx, victim.Name())
	if err != nil {
		return err
	}
	others := func(n *cluster.Node) bool { return n != victim }
	err = underTraffic(ctx, c, others, func(ctx context.Context) error {
		if _, err := c.Kubectl(ctx, "delete", "node", victim.Name()); err != nil {
			return err
		}
		if err := victim.Kubelet.Stop(ctx, syscall.SIGTERM); err != nil {
			return err
		}
		if err := victim.Kubelet.Start(ctx); err != nil {
			return err
		}
		return c.WaitReady(ctx, time.Minute)
	})
	if err != nil {
		return err
	}
	after, err := c.Node(ctx, victim.Name())
	if err != nil {
		return err
	}
	if after.UID == before.UID {
		return fmt.Errorf("Node %s has UID %s as before", victim.Name(), after.UID)
	}
	c.Progress("  podCIDRs of %s were %v, are %v", victim.Name(), before.PodCIDRs, after.PodCIDRs)
	// Pods of before have addresses that are no longer the node's.
	if _, err := c.Kubectl(ctx, "delete", "pods", "-l", "app=web", "--field-selector=spec.nodeName="+victim.Name(), "--wait=true"); err != nil {
		return err
	}
	return checkPods(ctx, c)
}
