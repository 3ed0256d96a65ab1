// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"weft.dev/weft/tests/netlab"
)

// A Pod is what the API says of a pod.
type Pod struct {
	Namespace, Name, UID string
	Node                 string
	Phase                string
	IPs                  []netip.Addr
	Ready                bool
	Restarts             int // of its first container
	HostNetwork          bool
}

// podObject is what we read of a Pod.
type podObject struct {
	Metadata struct{ Namespace, Name, UID string }
	Spec     struct {
		NodeName    string
		HostNetwork bool
	}
	Status struct {
		Phase             string
		PodIPs            []struct{ IP netip.Addr }
		Conditions        []struct{ Type, Status string }
		ContainerStatuses []struct{ RestartCount int }
	}
}

func (o podObject) pod() Pod {
	p := Pod{Namespace: o.Metadata.Namespace, Name: o.Metadata.Name, UID: o.Metadata.UID, Node: o.Spec.NodeName, Phase: o.Status.Phase,
		HostNetwork: o.Spec.HostNetwork}
	for _, ip := range o.Status.PodIPs {
		p.IPs = append(p.IPs, ip.IP)
	}
	for _, c := range o.Status.Conditions {
		p.Ready = p.Ready || c.Type == "Ready" && c.Status == "True"
	}
	if len(o.Status.ContainerStatuses) > 0 {
		p.Restarts = o.Status.ContainerStatuses[0].RestartCount
	}
	return p
}

// Pods returns the pods of a namespace that have a label, such as "app=web".
func (c *Cluster) Pods(ctx context.Context, namespace, label string) ([]Pod, error) {
	return c.listPods(ctx, "/api/v1/namespaces/"+namespace+"/pods?labelSelector="+strings.ReplaceAll(label, "=", "%3D"))
}

// AllPods returns all pods of the cluster.
func (c *Cluster) AllPods(ctx context.Context) ([]Pod, error) { return c.listPods(ctx, "/api/v1/pods") }

func (c *Cluster) listPods(ctx context.Context, path string) ([]Pod, error) {
	var list struct{ Items []podObject }
	if err := c.GetJSON(ctx, path, &list); err != nil {
		return nil, err
	}
	var out []Pod
	for _, o := range list.Items {
		out = append(out, o.pod())
	}
	return out, nil
}

// Place returns where the pod's programs run, until the pod ends. The caller
// closes it.
func (p Pod) Place() (*netlab.Place, error) {
	pids, err := p.PIDs()
	if err != nil {
		return nil, err
	}
	if len(pids) == 0 {
		return nil, fmt.Errorf("pod %s on %s has no process", p.Name, p.Node)
	}
	return netlab.PlaceOf(p.Name, pids[0])
}

// PIDs returns the pod's processes, in the lab's PID namespace: those whose
// control group is named by the pod's UID.
func (p Pod) PIDs() ([]int, error) {
	return Processes(func(dir string) bool {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		return err == nil && strings.Contains(string(b), p.UID) // one that has gone is none
	})
}

// Processes returns the processes of the cluster that match, given their
// directory in /proc.
func Processes(match func(dir string) bool) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !match(filepath.Join("/proc", e.Name())) {
			continue
		}
		out = append(out, pid)
	}
	return out, nil
}

// WithProgram matches processes of a program, by the path that it was started
// from as its own root directory has it.
func WithProgram(path string) func(dir string) bool {
	return func(dir string) bool {
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if errors.Is(err, fs.ErrNotExist) {
			return false // it has ended, or is the kernel's
		}
		return strings.TrimSuffix(exe, " (deleted)") == path
	}
}

// WithArgument matches processes that were started with an argument.
func WithArgument(arg string) func(dir string) bool {
	return func(dir string) bool {
		b, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		return err == nil && slices.Contains(strings.Split(string(b), "\x00"), arg)
	}
}
