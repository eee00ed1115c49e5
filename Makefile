# Two commands matter: `make demo` and `make test`. Both set up what is missing first.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# Tools that scripts/setup put into the checkout come first: it puts one there only when the machine's own is too old.
export PATH := $(CURDIR)/.tools/bin:$(PATH):/usr/sbin:/sbin
export CARGO_TERM_COLOR ?= auto

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
FUZZ_SECONDS ?= 30
SEEDS ?= 1000

.NOTPARALLEL:
.PHONY: help setup build demo test check lint doc apiserver unit simulate bench instructions flood loadtest soak chaos accuracy mutations fuzz deny clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## find or install nats-server, clang, libbpf headers, a Python venv
	@scripts/setup

build: ## the tapio binary, optimised
	@scripts/setup --build
	cargo build --release --locked -p tapio --bin tapio

demo: build ## a real process leaks memory; watch Tapio say when, see the kill, tell the story; Ctrl-C ends it
	@scripts/demo $(TARGET_DIR)/release/tapio

test: setup lint check doc ## set-up, format, lints, style checks, doc build, instruction counts, all tests (kernel tests need root and say so)
	@scripts/apiserver --if-found
	@if [ "$$(uname -sm)" = "Linux x86_64" ]; then $(MAKE) --no-print-directory instructions; \
	else echo "instructions: NOT COUNTED: the limits are those of Linux on x86_64" >&2; fi
	@$(MAKE) --no-print-directory unit

apiserver: setup ## tests against a real Kubernetes control plane: kube-apiserver, etcd, … in KUBEBUILDER_ASSETS or PATH
	@scripts/apiserver

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --workspace --test apiserver --locked -- -D warnings

check: setup ## dependency direction, file sizes, banned calls, cited paths, rendered manifests
	scripts/check --self-test
	scripts/check
	.tools/venv/bin/python scripts/check-kustomize --self-test
	.tools/venv/bin/python scripts/check-kustomize

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# nextest gives each test a process of its own but runs no doc tests, so they come on their own, first: the run ends
# with the summary that counts.
unit:
	cargo test --workspace --locked --doc
	@if cargo nextest --version >/dev/null 2>&1; then \
	    set -x; cargo nextest run --workspace --locked --no-fail-fast; \
	else \
	    set -x; cargo test --workspace --locked --no-fail-fast --lib --bins --tests; \
	fi

simulate: setup ## the correlator with faults over an in-memory bus, SEEDS=1000 of them (docs/simulation.md)
	TAPIO_SIM_SEEDS=$(SEEDS) cargo test --release --locked -p tapio-correlator --lib simulation::any_seed -- --nocapture

mutations: build ## docs/patterns.md and docs/mutations.md anew: what each cause is told by, and which case needs which discriminator
	$(TARGET_DIR)/release/tapio patterns docs > docs/patterns.md
	$(TARGET_DIR)/release/tapio patterns docs --mutations > docs/mutations.md

bench: setup ## criterion benchmarks
	cargo bench --locked -p tapio-schemas --bench wire
	cargo bench --locked -p tapio-runtime
	cargo bench --locked -p tapio-correlator --bench shards

GUNGRAUN := $(CURDIR)/.tools/gungraun
instructions: setup ## instructions of stage one against their limits, counted by valgrind on Linux, x86_64 (installs gungraun-runner into .tools)
	cargo install --quiet --locked --debug gungraun-runner --version 0.20.0 --root $(GUNGRAUN)
	GUNGRAUN_RUNNER=$(GUNGRAUN)/bin/gungraun-runner cargo bench --locked -p tapio-correlator --bench instructions

flood: setup ## the node agent under RATE=20000 connections/s with its real kernel programs, then idle (root)
	cargo bench --locked -p tapio-agents --bench flood -- --seconds 30 --rate $(or $(RATE),20000)
	cargo bench --locked -p tapio-agents --bench flood -- --seconds 30 --idle

loadtest: build ## throughput for a minute, then latency at RATE=165000 events/s
	$(TARGET_DIR)/release/tapio loadtest throughput
	$(TARGET_DIR)/release/tapio loadtest latency --rate $(or $(RATE),165000)

soak: build ## a steady load for MINUTES=30: memory must not grow
	$(TARGET_DIR)/release/tapio loadtest soak --minutes $(or $(MINUTES),30)

chaos: build ## five minutes in which every process is killed, paused and restarted; SEED=1
	$(TARGET_DIR)/release/tapio loadtest chaos --seed $(or $(SEED),1)

accuracy: build ## recorded faults with known causes: FAULTS=directory, K8S=another one; writes docs/accuracy.md
	@test -n "$(FAULTS)$(K8S)" || { echo "accuracy: say where the cases are: make accuracy FAULTS=directory [K8S=directory] (docs/accuracy.md says what is in one)" >&2; exit 64; }
	$(TARGET_DIR)/release/tapio accuracy $(FAULTS) $(K8S) --jobs $(or $(JOBS),$(shell nproc)) --write docs/accuracy.md

fuzz: ## feed arbitrary bytes to the batch decoder, FUZZ_SECONDS=30 (needs nightly and cargo-fuzz)
	@cargo +nightly --version >/dev/null || { echo "fuzz: needs a nightly toolchain: rustup toolchain install nightly" >&2; exit 1; }
	@cargo +nightly fuzz --version >/dev/null 2>&1 || { echo "fuzz: needs cargo-fuzz: cargo install --locked cargo-fuzz" >&2; exit 1; }
	cd schemas && cargo +nightly fuzz run decode_batch -- -max_total_time=$(FUZZ_SECONDS)

deny: ## licences and known holes of the dependencies (needs cargo-deny)
	@cargo deny --version >/dev/null 2>&1 || { echo "deny: needs cargo-deny: cargo install --locked cargo-deny" >&2; exit 1; }
	cargo deny --all-features check licenses bans sources

clean: ## remove build output and demo data; the tools in .tools stay
	cargo clean
