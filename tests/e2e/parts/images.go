// SPDX-License-Identifier: Apache-2.0

package parts

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Names of images that our own cases and the cluster use. The suite's own
// names lead to the same images.
const (
	AgnhostImage = "weft.dev/e2e/agnhost:parts"
	PauseImage   = "weft.dev/e2e/pause:parts"
	CoreDNSImage = "weft.dev/e2e/coredns:parts"
)

// images packs the images that are missing and returns the archives of all.
func (c *Cache) images(ctx context.Context, set Set) ([]string, error) {
	names, err := suiteNames(ctx, set)
	if err != nil {
		return nil, err
	}
	var archives []string
	for _, make := range []func(context.Context, Set) (string, image, error){c.pauseImage, agnhostImage, corednsImage} {
		name, img, err := make(ctx, set)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		if img.files == nil {
			continue
		}
		for _, n := range names {
			if suits(name, n) {
				img.names = append(img.names, n)
			}
		}
		archive, err := c.pack(ctx, name, img)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		archives = append(archives, archive)
	}
	return archives, nil
}

// suits reports whether one of our images can stand for the suite's.
func suits(ours, suites string) bool {
	repo := suites[:strings.LastIndexByte(suites, ':')]
	switch base := repo[strings.LastIndexByte(repo, '/')+1:]; base {
	case "agnhost", "busybox", "glibc-dns-testing": // ours has busybox's shell and glibc's resolver
		return ours == "agnhost"
	default:
		return ours == base
	}
}

// suiteNames returns the names of the images that Kubernetes' suite uses, or
// none if it is not among the parts.
func suiteNames(ctx context.Context, set Set) ([]string, error) {
	suite, ok := set.Programs[E2ETest]
	if !ok {
		return nil, nil
	}
	out, err := exec.CommandContext(ctx, suite, "--list-images").Output()
	if err != nil {
		return nil, fmt.Errorf("list the images of %s: %w", E2ETest, err)
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		if n := strings.TrimSpace(line); strings.Contains(n, "/") && strings.Contains(n, ":") {
			names = append(names, n)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s --list-images names none", E2ETest)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// pack writes an image's archive if it is not in the cache.
func (c *Cache) pack(ctx context.Context, name string, img image) (string, error) {
	key, err := img.key()
	if err != nil {
		return "", err
	}
	archive := filepath.Join(c.dir, "images", name+"-"+key+".tar")
	start := time.Now()
	packed := false
	err = c.place(ctx, archive, func(temporary string) error {
		packed = true
		return img.write(temporary)
	})
	if err == nil && packed {
		c.say("packed image %s in %.0f s", name, time.Since(start).Seconds())
	}
	return archive, err
}

// key is a digest of all that goes into an image. Files count by size and
// time: the programs among them are named for what they were built from.
func (i image) key() (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "2 %q %q %q\n", i.entrypoint, i.cmd, i.names) // raise the number when write changes
	for _, name := range sortedKeys(i.files) {
		f := i.files[name]
		fmt.Fprintf(h, "%q %+v", name, f)
		if f.from != "" {
			st, err := os.Stat(f.from)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(h, " %d %s", st.Size(), st.ModTime())
		}
		fmt.Fprintln(h)
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// pauseImage is the image of the container that holds a pod's namespaces:
// Kubernetes' own C program.
func (c *Cache) pauseImage(ctx context.Context, set Set) (string, image, error) {
	dir := filepath.Dir(set.Programs["kubelet"])
	binary := filepath.Join(dir, "pause")
	err := c.place(ctx, binary, func(temporary string) error {
		src, err := goTool(ctx, filepath.Join(c.modules, "kubernetes"), "list", "-m", "-f", "{{.Dir}}", "k8s.io/kubernetes")
		if err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, "gcc", "-Os", "-static", "-s", "-DVERSION="+filepath.Base(dir),
			"-o", temporary, filepath.Join(src, "build/pause/linux/pause.c"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("gcc: %w: %s", err, tail(string(out), 10))
		}
		return nil
	})
	img := image{entrypoint: []string{"/pause"}, names: []string{PauseImage}}
	img.add("pause", file{from: binary})
	return "pause", img, err
}

// corednsImage is CoreDNS alone, as upstream packs it.
func corednsImage(_ context.Context, set Set) (string, image, error) {
	binary, ok := set.Programs["coredns"]
	img := image{entrypoint: []string{"/coredns"}, names: []string{CoreDNSImage}}
	if ok {
		img.add("coredns", file{from: binary})
	}
	return "coredns", img, nil
}

// agnhostImage is the suite's workhorse: agnhost and the programs that specs
// run beside it, which are this machine's. Its shell is not busybox's, which
// would take its own programs before others of their names.
func agnhostImage(ctx context.Context, set Set) (string, image, error) {
	img := image{entrypoint: []string{"/agnhost"}, cmd: []string{"pause"}, names: []string{AgnhostImage}}
	img.add("agnhost", file{from: set.Programs["agnhost"]})
	if err := addBusybox(ctx, &img.rootfs); err != nil {
		return "agnhost", img, err
	}
	for _, program := range []string{"sh", "bash", "curl", "dig", "ip", "ss", "nc", "ping", "getent", "hostname", "iptables"} {
		if err := addProgram(ctx, &img.rootfs, program); err != nil {
			return "agnhost", img, err
		}
	}
	img.add("etc/passwd", file{mode: 0o644, text: "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"})
	img.add("etc/group", file{mode: 0o644, text: "root:x:0:\nnogroup:x:65534:\n"})
	img.add("etc/nsswitch.conf", file{mode: 0o644, text: "passwd: files\ngroup: files\nhosts: files dns\n"})
	return "agnhost", img, nil
}

// addBusybox adds a static busybox and a link for each program that it is.
func addBusybox(ctx context.Context, r *rootfs) error {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, path, "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox --list: %w", err)
	}
	r.add("bin/busybox", file{from: path})
	for applet := range strings.Lines(string(out)) {
		if name := strings.TrimSpace(applet); name != "busybox" { // it lists itself
			r.add("bin/"+name, file{link: "/bin/busybox"})
		}
	}
	return nil
}

// addProgram adds a program of this machine, in place of busybox's, with the
// shared libraries that it loads.
func addProgram(ctx context.Context, r *rootfs, program string) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return err
	}
	path, err = filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	r.add("bin/"+program, file{from: path})
	out, err := exec.CommandContext(ctx, "ldd", path).Output()
	if err != nil {
		return fmt.Errorf("libraries of %s: %w", program, err)
	}
	// Lines are "libx.so.1 => /lib/libx.so.1 (0x...)", "/lib64/ld.so.2 (0x...)"
	// and, for the kernel's own, "linux-vdso.so.1 (0x...)".
	for s := bufio.NewScanner(strings.NewReader(string(out))); s.Scan(); {
		for _, word := range strings.Fields(s.Text()) {
			if strings.HasPrefix(word, "/") {
				r.add(word, file{from: word})
			}
		}
	}
	return nil
}
