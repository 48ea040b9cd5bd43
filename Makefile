# PG_CONFIG names the PostgreSQL to build for and to run; PG=17 and PG=18 are others that stack/ can get or build.
# Servers of our own live in .stack (see stack/).
PG_CONFIG ?= /usr/bin/pg_config
export PG_CONFIG
export PG

.PHONY: help setup demo stop test faults fuzz check audit bench bench-quick install package
.NOTPARALLEL:

help: ## Show this
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1|\2/p' $(MAKEFILE_LIST) | awk -F "|" "{ printf \"%-14s %s\\n\", \$$1, \$$2 }"

setup: ## Install what is missing: packages, servers, cargo-pgrx
	@stack/install

demo: setup ## Build, start private servers, load real data, show the main job; leaves it running
	@stack/install-extension
	@stack/up
	@demo/run

stop: ## Stop the servers that make demo or stack/up started
	@stack/down

test: setup ## Run every test on servers of its own
	@stack/install-extension
	@env -u STACK_DIR stack/run-tests

faults: setup ## The fault bench in its long form: FAULTS_MINUTES (10) of random faults, from FAULTS_SEED on
	@stack/install-extension
	@env -u STACK_DIR FAULTS_MINUTES=$${FAULTS_MINUTES:-10} stack/run-tests --faults

fuzz: ## Coverage-guided fuzzing of what reads bytes of others, FUZZ_SECONDS (60) a target
	@stack/install build
	@stack/fuzz

check: ## Formatting, lints, licences
	@stack/install build
	@stack/check

audit: ## Known vulnerabilities of the dependencies (fetches the advisory database)
	@stack/check advisories

bench: setup ## Run the benchmarks, in under 40 minutes
	@stack/install-extension
	@stack/up
	@bench/run

bench-quick: setup ## A smaller run of them, in under 5 minutes
	@stack/install-extension
	@stack/up
	@bench/run --size quick

install: ## Build in release and install into the PostgreSQL of PG_CONFIG
	@stack/install build
	@stack/install-extension

package: ## Build in release and pack the files that an installation needs
	@stack/install build
	@stack/package --archive
