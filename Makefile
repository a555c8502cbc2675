# `make demo` and `make test` are all a newcomer needs; each installs what it needs. `make help` lists the rest.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test build probe lint fmt

# The daemons, the CLI and the demo; not the benches, which nobody waits for who does not want them.
BUILD = cargo build --release --workspace --bin usher --bin usher-agent --bin usher-orchestrator --bin usher-demo

help: ## this list
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## the closed loop on real packets, end to end (DEMO="--mode capture" for the capture file)
	@scripts/install.sh
	$(BUILD)
	@target/release/usher-demo $(DEMO)

test: ## every test: unit, property, end to end
	@scripts/install.sh
	@scripts/test.sh

build: ## the daemons and the CLI, in target/release
	@scripts/install.sh
	$(BUILD)

probe: ## rebuild the probe's object, installing its toolchain
	@scripts/probe.sh

bench-%: ## run the bench NAME (BENCH="its arguments"); the figures are also in target/bench/NAME.json
	@scripts/install.sh bench
	$(BUILD) --quiet --bin $*
	@target/release/$* $(BENCH)

lint: ## what CI asks of the code's form
	cargo fmt --all --check
	cargo clippy --release --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --workspace --no-deps

fmt: ## format the code
	cargo fmt --all
