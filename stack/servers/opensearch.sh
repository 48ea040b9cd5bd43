# OpenSearch 3 on a JDK 21 or newer, else OpenSearch 2 on a JDK 17. STACK_OPENSEARCH sets the version.
# shellcheck shell=bash

opensearch_version() {
    if [ -n "${STACK_OPENSEARCH:-}" ]; then
        printf '%s' "$STACK_OPENSEARCH"
    elif [ -n "$(find_jdk 21)" ]; then
        printf 3.8.0
    else
        printf 2.19.1
    fi
}

opensearch_prepare() { engine_prepare opensearch opensearch "$(opensearch_version)" 19200; }

opensearch_run() { engine_run opensearch opensearch "$(opensearch_version)"; }

opensearch_ready() { engine_ready opensearch; }

opensearch_where() { engine_where opensearch; }

opensearch_signal() { if [ "$1" = immediate ]; then echo KILL; else echo TERM; fi; }
