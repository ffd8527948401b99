# One target per thing one does here; `make help` lists them. The work is in scripts/.
# Downloads and tools go to $(POOLGATE_CACHE), outside the checkout; `make setup` fills it.

export POOLGATE_CACHE ?= $(HOME)/.cache/poolgate
export PATH := $(POOLGATE_CACHE)/bin:$(PATH):$(HOME)/.cargo/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check clients soak fuzz release bench dev setup advisories

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r target text; \
		do printf '  make %-11s %s\n' "$$target" "$$text"; done

demo: ## gateway, simulator and traffic in one process; needs no account
	@scripts/setup.sh build
	@test -e $(or $(CARGO_TARGET_DIR),target)/debug/poolgate || echo "demo: first build, some minutes"
	@cargo run -p poolgate -- demo $(ARGS)

test: ## everything CI runs; installs what is missing
	@scripts/test.sh test

check: ## the same without the real clients
	@scripts/test.sh check

clients: ## only the tests with the real clients
	@scripts/setup.sh build tools clients
	cargo nextest run -p poolgate --test clients $(ARGS)

soak: ## the long forms of the tests, then all at trace level, searched for secrets
	@scripts/setup.sh build tools clients
	POOLGATE_SOAK=1 cargo nextest run --workspace --profile soak $(ARGS)
	POOLGATE_CANARIES=1 cargo nextest run --workspace --profile soak $(ARGS)
	@scripts/fuzz.sh 600

fuzz: ## libFuzzer on each target, 10 min each; ARGS="60 events" for a minute of one
	@scripts/setup.sh build
	@scripts/fuzz.sh $(ARGS)

release: ## the program as it is meant to be run; says where it is
	@scripts/setup.sh build release
	@scripts/release.sh

bench: ## CPU per request beside nginx and a direct connection
	@scripts/setup.sh build bench release
	@scripts/bench.sh $(ARGS)

dev: ## the gateway with poolgate.toml, logging in detail; CONFIG=file for another
	RUST_LOG=$${RUST_LOG:-poolgate=debug,info} \
		cargo run -p poolgate -- serve --config $(or $(CONFIG),poolgate.toml) $(ARGS)

setup: ## install what the tests need
	@scripts/setup.sh build tools clients
	@echo "setup: complete, in $(POOLGATE_CACHE)"

advisories: ## known vulnerabilities in dependencies; needs the network
	@scripts/setup.sh build tools
	@if timeout 120 cargo deny fetch db; then cargo deny check --disable-fetch advisories; \
	else echo "advisories: NOT CHECKED, the database could not be fetched" >&2; fi
