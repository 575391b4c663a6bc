# Two commands: `make run` shows a job, `make test` is all that CI asks. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Build outputs live in a cache outside the checkout: quick on the second run, nothing to clean up in the sources.
CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/tiderace
export CARGO_TARGET_DIR ?= $(CACHE)/target
# Incremental builds help who edits; a machine that builds once pays for them in time and space.
ifdef CI
export CARGO_INCREMENTAL := 0
endif
export RUST_BACKTRACE ?= 0

TIDERACE := $(CARGO_TARGET_DIR)/release/tiderace
EVENTS := engine/tests/data/golden/events.jsonl.gz

.PHONY: help run test mistakes soak miri e2e bench bench-storage bench-operator demo-k8s demo-k8s-down doc setup update

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Check for compiler and tools; as root, install the Debian packages that are missing
	@.ci/setup

run: setup ## Build in release and run an example job on real input
	cargo build --release --locked --bin tiderace
	@echo
	$(TIDERACE) run examples/bids-by-channel.yaml -D events=$(EVENTS)
	@examples/what-next $(TIDERACE)

test: setup ## All that CI asks: format, lints, tests, documentation, generated files
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo test --workspace --locked --quiet
	$(MAKE) --no-print-directory mistakes
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --locked
	$(MAKE) --no-print-directory e2e
	@echo "make test: all is well"

e2e: ## The tests on a real Kubernetes, which runs on this machine: root and Go (E2E="bad_image --keep" narrows it)
	cargo build --workspace --bins --locked
	e2e/run $(E2E)

DEMO_PROFILE ?= release
demo-k8s: setup ## A Kubernetes on this machine with the operator and an example job in it: root and Go
	cargo build --profile $(DEMO_PROFILE) --workspace --bins --locked
	@examples/kubernetes/demo up $(CARGO_TARGET_DIR)/$(DEMO_PROFILE:dev=debug)

demo-k8s-down: ## Remove it, without a trace but the build cache
	@examples/kubernetes/demo down

mistakes: ## Storage with mistakes made on purpose: each must make its tests fail (MISTAKES=all runs all tests with each)
	TIDERACE_MISTAKES=$(MISTAKES) cargo test --locked --quiet -p tiderace-storage --features bugs --test crash_points -- mistakes:: --nocapture

soak: setup ## Storage for hours: millions of crash points, kills and interleavings (SEED=1 ROUNDS=5000)
	TIDERACE_CRASH_SEED=$(or $(SEED),1) TIDERACE_CRASH_ROUNDS=$(or $(ROUNDS),5000) TIDERACE_KILL_ROUNDS=300 TIDERACE_INTERLEAVINGS=20000 \
	cargo test --locked -p tiderace-storage --test crash_points --test processes --test interleavings -- --nocapture
	$(MAKE) --no-print-directory mistakes MISTAKES=all

miri: ## Storage's tables, shards and devices in memory under Miri: needs a nightly toolchain with it (rustup +nightly component add miri)
	PROPTEST_CASES=$(or $(CASES),4) MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-tree-borrows" CARGO_TARGET_DIR=$(CARGO_TARGET_DIR)/miri \
	cargo +nightly miri test --locked -p tiderace-storage --lib -- point:: ordered:: raw:: store:: shard::

update: ## Write the generated files anew (definitions, reference pages, deploy/tiderace.yaml)
	UPDATE=1 cargo test --workspace --locked --lib -- up_to_date
	@if PATH=$$PATH:/usr/local/go/bin command -v go >/dev/null; then UPDATE=1 cargo run --quiet --bin tiderace-e2e --locked -- render; \
	else echo "deploy/tiderace.yaml is left as it is: Go is missing"; fi

bench: setup ## Nexmark: events per second and core, CPU per event, memory, digests (BENCH="q0 q17 --cores 1 --rounds 1" narrows it)
	cargo bench --locked --bench nexmark -- $(BENCH)
	$(if $(BENCH),,cargo bench --locked --bench replayed)
	$(if $(BENCH),,cargo bench --locked --bench ycsb -- $(YCSB))
	$(if $(BENCH),,$(MAKE) --no-print-directory bench-operator)

bench-storage: setup ## The concurrent store under YCSB beside a plain hash map, appends to the log (YCSB="--keys 250000 --threads 1")
	cargo bench --locked -p tiderace-storage --bench ycsb -- $(YCSB)
	$(if $(YCSB),,cargo bench --locked -p tiderace-storage --bench checkpoints)

JOBS ?= 1000
bench-operator: ## One operator with 1000 jobs on a real API server, pods faked: memory, CPU, writes, reaction (JOBS=100)
	cargo build --release --locked -p tiderace-operator -p tiderace-e2e
	$(CARGO_TARGET_DIR)/release/tiderace-e2e bench --jobs $(JOBS)

doc: setup ## Build the book (with mdbook, if it is there) and the API documentation
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" cargo doc --workspace --no-deps --locked
	@if command -v mdbook >/dev/null; then mdbook build docs --dest-dir $(CACHE)/book && echo "book: $(CACHE)/book/index.html"; \
	else echo "the book needs mdbook (cargo install mdbook); its pages are plain Markdown, from docs/SUMMARY.md on"; fi
	@echo "API: $(CARGO_TARGET_DIR)/doc/tiderace_engine/index.html"
