# Elasticsearch 9 (the server core) on a JDK 21 or newer, else Elasticsearch 7 on a JDK 17.
# STACK_ELASTICSEARCH sets the version: 7.10.2 has analyzers and scripts, 8.19.21 is a server core as 9 is.
# shellcheck shell=bash

elasticsearch_version() {
    if [ -n "${STACK_ELASTICSEARCH:-}" ]; then
        printf '%s' "$STACK_ELASTICSEARCH"
    elif [ -n "$(find_jdk 21)" ]; then
        printf 9.5.3
    else
        printf 7.10.2
    fi
}

# The folder with the pom.xml and the class that starts it.
elasticsearch_kind() {
    case $(elasticsearch_version) in
        7.*) echo elasticsearch7 ;;
        8.*) echo elasticsearch8 ;;
        *) echo elasticsearch ;;
    esac
}

elasticsearch_prepare() {
    local version kind home lib
    version=$(elasticsearch_version)
    kind=$(elasticsearch_kind)
    engine_prepare elasticsearch "$kind" "$version" 19210
    lib=$(engine_lib "$kind" "$version")
    if [ -d "$lib/modules" ]; then
        home=$(engine_home elasticsearch "$version")
        mkdir -p "$home/config" "$home/modules"
        rm -rf "$home/modules/transport-netty4"
        ln -s "$lib/modules/transport-netty4" "$home/modules/transport-netty4"
    fi
}

elasticsearch_run() { engine_run elasticsearch "$(elasticsearch_kind)" "$(elasticsearch_version)"; }

elasticsearch_ready() { engine_ready elasticsearch; }

elasticsearch_where() { engine_where elasticsearch; }

elasticsearch_signal() { if [ "$1" = immediate ]; then echo KILL; else echo TERM; fi; }
