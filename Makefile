# SPDX-License-Identifier: Apache-2.0
# `make help` lists the targets. Everything is built into bin/, nothing is
# installed except by `make deps`.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO      ?= go
# Release builds are static and carry no paths of the machine that built them.
# grpcnotrace leaves out grpc's page of traces, whose templates call methods by
# name: the linker would keep every method of every type, a fifth of weftd.
BUILD   := CGO_ENABLED=0 $(GO) build -tags grpcnotrace -trimpath -buildvcs=$$(git status >/dev/null 2>&1 && echo auto || echo false) -ldflags '-s -w'
# Debian packages that the lab and the tests use; the product needs none.
DEPS    := ethtool iproute2 iputils-ping iperf3 etcd-server nftables procps
# What the e2e tests use on top: the programs that a node has anyhow, and those
# that go into the image that specs run.
E2E_DEPS := runc iptables conntrack gcc libc6-dev busybox-static bash curl bind9-dnsutils netcat-openbsd
# Programs that must be there before a target starts.
TOOLS   := ethtool ip bridge ping iperf3 etcd nft

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | expand -t 16

.PHONY: deps
deps: ## install the Debian packages that lab and tests use (needs root)
	@dist/deps.sh $(DEPS) $(E2E_DEPS)

.PHONY: build
build: bin/.plugins ## build the agent, the CLI, the CNI plugins and the lab into bin/
	$(BUILD) -o bin/weftd ./cmd/weftd
	$(BUILD) -o bin/weft ./cmd/weft
	$(BUILD) -o bin/cni/weft ./cni-shim
	$(GO) -C tests build -trimpath -buildvcs=false -o ../bin/weft-lab ./lab

bin/.plugins: dist/cni-plugins/go.mod dist/cni-plugins/go.sum
	@mkdir -p bin/cni
	CGO_ENABLED=0 $(GO) -C dist/cni-plugins build -trimpath -buildvcs=false -ldflags '-s -w' -o ../../bin/cni/ tool
	@touch $@

# The image holds static binaries for one architecture and nothing else.
IMAGE_ARCH ?= amd64
IMAGE_ROOT  = bin/image/$(IMAGE_ARCH)
IMAGE_FILE  = bin/weft-image$(if $(filter-out amd64,$(IMAGE_ARCH)),-$(IMAGE_ARCH)).tar

.PHONY: image image-root
image: image-root ## build bin/weft-image.tar, an OCI archive for `ctr images import` (IMAGE_ARCH=arm64: for that)
	@commit=$$(git log -1 --format='%H %ct' 2>/dev/null || true); set -- $$commit; \
	revision=$${1:-}; [ -z "$$revision" ] || [ -z "$$(git status --porcelain)" ] || revision=$$revision-dirty; \
	$(GO) -C dist/image run -buildvcs=false . --root ../../$(IMAGE_ROOT) --chart ../chart/weft --arch $(IMAGE_ARCH) \
	  --revision "$$revision" --created "$${2:-0}" -o $(CURDIR)/$(IMAGE_FILE)

.PHONY: image-check
image-check: ## build the image of the last commit in two clones and compare: compiler and linker give the same bytes too
	@dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; \
	for c in a b/c; do git clone -q --shared . "$$dir/$$c" && $(MAKE) -s -C "$$dir/$$c" image >/dev/null; done; \
	cmp "$$dir/a/$(IMAGE_FILE)" "$$dir/b/c/$(IMAGE_FILE)" && sha256sum <"$$dir/a/$(IMAGE_FILE)"

# A directory for each layer: what changes seldom is one of its own.
image-root: export GOOS = linux
image-root: export GOARCH = $(IMAGE_ARCH)
image-root:
	@rm -rf $(IMAGE_ROOT) && mkdir -p $(IMAGE_ROOT)/10-plugins/bin/cni $(IMAGE_ROOT)/20-weft/bin/cni
	CGO_ENABLED=0 $(GO) -C dist/cni-plugins build -trimpath -buildvcs=false -ldflags '-s -w' -o $(CURDIR)/$(IMAGE_ROOT)/10-plugins/bin/cni/ tool
	$(BUILD) -o $(IMAGE_ROOT)/20-weft/bin/weftd ./cmd/weftd
	$(BUILD) -o $(IMAGE_ROOT)/20-weft/bin/weft ./cmd/weft
	$(BUILD) -o $(IMAGE_ROOT)/20-weft/bin/cni/weft ./cni-shim
	@cp LICENSE $(IMAGE_ROOT)/20-weft/

.PHONY: manifests
manifests: ## render dist/manifests from the chart, which is the only source
	$(GO) -C dist/render run -buildvcs=false .

.PHONY: need-tools need-root
need-tools:
	@missing=; for t in $(TOOLS); do command -v $$t >/dev/null || missing="$$missing $$t"; done; \
	if [ -n "$$missing" ]; then echo "missing:$$missing; \`make deps\` installs what the lab and the tests use" >&2; exit 1; fi
need-root:
	@if [ "$$(id -u)" != 0 ]; then echo "this target makes network namespaces and needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1; fi

.PHONY: lab
lab: need-root need-tools build ## three nodes on this machine: ping matrix, iperf3, cleans up after itself
	bin/weft-lab run

.PHONY: lab-up lab-down
lab-up: need-root need-tools build ## the same, left standing
	bin/weft-lab up
lab-down: ## end the lab that lab-up left
	bin/weft-lab down

.PHONY: test
test: need-root need-tools build ## every test that needs no Kubernetes
	$(GO) test -race -count=1 -timeout 10m ./...
	$(GO) -C dist/image test -count=1 ./...
	$(GO) -C dist/render test -count=1 ./...
	$(GO) -C tests test -count=1 -timeout 18m -p 1 $$($(GO) -C tests list ./... | grep -v '/tests/kube$$')
	$(GO) -C tests/e2e test -count=1 -timeout 2m -p 1 -skip '^TestCluster$$' ./...

# The server is a part of the e2e cluster: built once, several minutes, into
# the same cache.
.PHONY: test-kube
test-kube: weft-e2e ## the store on the Node API and the manifest's rights against a real kube-apiserver
	@server=$$(bin/weft-e2e parts kube-apiserver); export WEFT_KUBE_APISERVER=$$server; \
	$(GO) -C tests test -count=1 -timeout 18m ./kube

.PHONY: test-full
test-full: need-root need-tools build ## the same with full counts: outages of 60 s, 20 rounds of races, two builds of the image
	$(MAKE) image-check
	WEFT_FULL=1 $(GO) -C tests test -count=1 -timeout 60m -p 1 -v $$($(GO) -C tests list ./... | grep -v '/tests/kube$$')

.PHONY: faults
faults: need-root need-tools build ## break labs in every way of the table, under traffic; writes docs/faults.md (about 14 minutes)
	$(GO) -C tests build -trimpath -buildvcs=false -o ../bin/weft-faults ./faults
	bin/weft-faults --markdown docs/faults.md --json bin/faults.json $(FAULTS)

.PHONY: bench bench-kube bench-build
bench: need-root need-tools build bench-build ## measure control plane, Node API and data path with up to 20,000 peers; writes docs/benchmarks.md (about 30 minutes)
	@server=$$(bin/weft-e2e parts kube-apiserver); export WEFT_KUBE_APISERVER=$$server; \
	bin/weft-bench --markdown docs/benchmarks.md --json bin/bench.json $(BENCH)
bench-kube: need-root need-tools build bench-build ## of these the agent among 1,000 Nodes of a real kube-apiserver; fails where bytes, writes or memory miss their bars (about 8 minutes)
	@server=$$(bin/weft-e2e parts kube-apiserver); export WEFT_KUBE_APISERVER=$$server; \
	bin/weft-bench --only kube --json bin/bench-kube.json $(BENCH)
bench-build: weft-e2e
	$(GO) -C tests build -trimpath -buildvcs=false -o ../bin/weft-bench ./bench

# The cluster is tested with a static network first: what fails there is not
# weft's.
.PHONY: weft-e2e e2e e2e-full e2e-policy e2e-steps e2e-up e2e-down
weft-e2e:
	$(GO) -C tests/e2e build -trimpath -buildvcs=false -o ../../bin/weft-e2e .
e2e: need-root ## a real Kubernetes on this machine: our cases and its own network specs (half an hour; the first time it builds Kubernetes, as long again)
	timeout --kill-after=60 5400 $(MAKE) --no-print-directory e2e-steps
e2e-full: need-root bin/.plugins image weft-e2e ## the same for IPv4, IPv6 and both, with kube-proxy by nftables and by iptables (about two and a half hours)
	@failed=; for family in ipv4 ipv6 dual; do for proxy in nftables iptables; do \
	  bin/weft-e2e run --family $$family --proxy $$proxy --helm=$$([ $$family$$proxy = dualnftables ] && echo true || echo false) --log-dir bin/e2e-logs/$$family-$$proxy $(E2E) || failed="$$failed $$family-$$proxy"; \
	done; done; [ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }
e2e-policy: need-root bin/.plugins image weft-e2e ## NetworkPolicy: our long cases and Kubernetes' own specs, pods spread and on one node, both modes of kube-proxy (an hour and a quarter)
	@failed=; for nodes in 3 1; do for proxy in nftables iptables; do \
	  bin/weft-e2e run --nodes $$nodes --cases "$$([ $$nodes$$proxy = 3nftables ] && echo '^policy: ' || echo '^$$')" --long --focus Netpol --specs tests/e2e/specs/netpol-v1.37.2.txt --limit 60m \
	    --proxy $$proxy --log-dir bin/e2e-logs/policy-$$nodes-$$proxy $(E2E) || failed="$$failed $$nodes-$$proxy"; \
	done; done; [ -z "$$failed" ] || { echo "failed:$$failed" >&2; exit 1; }
e2e-steps: bin/.plugins image weft-e2e
	bin/weft-e2e parts >/dev/null
	$(GO) -C tests/e2e test -count=1 -timeout 5m -p 1 ./...
	bin/weft-e2e run $(E2E)
e2e-up: need-root bin/.plugins image weft-e2e ## the same cluster, left standing; with --network none its nodes stay NotReady
	bin/weft-e2e up $(E2E)
e2e-down: ## end the cluster that e2e-up left
	bin/weft-e2e down

.PHONY: fuzz
fuzz: ## fuzz every codec for FUZZTIME (default 30s) each
	@for p in ./subnet ./cni-shim ./cni-shim/ledger ./backend/nft; do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep ^Fuzz); do \
	    echo "== $$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-30s} $$p; \
	  done; done

.PHONY: golden
golden: ## rewrite the golden files from what the code does now; read the diff
	$(GO) test ./overlay ./backend ./backend/nft -update

.PHONY: lint
lint: ## gofmt, vet, staticcheck, errcheck, ineffassign, misspell; manifests that are not as the chart renders them
	@bad=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$bad" ]; then echo "gofmt differs:" $$bad >&2; exit 1; fi
	$(GO) vet ./... && $(GO) -C tests vet ./... && $(GO) -C tests/e2e vet ./... && $(GO) -C dist/image vet ./...
	$(GO) -C dist/render run -buildvcs=false . --check
	@mkdir -p bin/tools && $(GO) -C dist/tools build -o ../../bin/tools/ tool
	bin/tools/staticcheck ./...
	cd tests && ../bin/tools/staticcheck ./...
	cd tests/e2e && ../../bin/tools/staticcheck ./...
	bin/tools/errcheck -ignoretests -exclude dist/tools/errcheck.txt ./...
	bin/tools/ineffassign ./...
	bin/tools/misspell -error $$(git ls-files '*.go' '*.md' Makefile)

.PHONY: clean
clean: ## remove what was built
	rm -rf bin
