# What OpenSearch and Elasticsearch have in common: jars from Maven, a small class that starts a node, one port each.
# shellcheck shell=bash
# shellcheck disable=SC2154  # lib.sh sets stack_root and stack_name

# KIND is the folder with the pom.xml and EngineNode.java.
engine_lib() { printf '%s/lib/%s-%s' "$STACK_CACHE" "$1" "$2"; }
engine_home() { printf '%s/data/%s-%s' "$STACK_DIR" "$1" "$2"; }

# The older engines do not start on a JDK without a security manager.
engine_jdk() {
    case $1 in
        opensearch-2.* | elasticsearch7-*) find_jdk 11 21 ;;
        *) find_jdk 21 ;;
    esac
}

# engine_install KIND VERSION: the jars, and the class compiled. Complete is what has its final name; servers that run
# from it are left alone.
engine_install() {
    local kind=$1 version=$2 lib new jdk source
    lib=$(engine_lib "$kind" "$version")
    source=$stack_root/stack/$kind/EngineNode.java
    if cmp -s "$source" "$lib/classes/EngineNode.java"; then return 0; fi
    jdk=$(engine_jdk "$kind-$version")
    [ -n "$jdk" ] || die "no JDK for $kind $version (the newer ones need version 21 or later)"
    if [ ! -d "$lib" ]; then
        command -v mvn >/dev/null || die "Maven is missing; run stack/install"
        say "fetching $kind $version"
        new=$lib.new
        rm -rf "$new"
        mkdir -p "$new/jars"
        mvn -q -B -f "$stack_root/stack/$kind/pom.xml" "-Dengine.version=$version" dependency:copy-dependencies \
            "-DoutputDirectory=$new/jars" </dev/null >"$lib.log" 2>&1 ||
            { cat "$lib.log" >&2; die "Maven could not fetch $kind $version"; }
        if [ "$kind" = elasticsearch ] || [ "$kind" = elasticsearch8 ]; then netty_module "$new" "$version"; fi
        mv "$new" "$lib"
    fi
    mkdir -p "$lib/classes"
    "$jdk/bin/javac" -cp "$lib/jars/*" -d "$lib/classes" "$source"
    cp "$source" "$lib/classes/"
}

# Elasticsearch finds its HTTP transport only as a module with a descriptor, not on the class path.
netty_module() {
    local module=$1/modules/transport-netty4
    mkdir -p "$module"
    mv "$1"/jars/transport-netty4-*.jar "$1"/jars/netty-*.jar "$module/"
    cat >"$module/plugin-descriptor.properties" <<DESCRIPTOR
description=netty
version=$2
name=transport-netty4
java.version=21
elasticsearch.version=$2
classname=org.elasticsearch.transport.netty4.Netty4Plugin
DESCRIPTOR
}

# engine_prepare NAME KIND VERSION FIRST_PORT
engine_prepare() {
    engine_install "$2" "$3"
    server_folder "$STACK_DIR/data"
    server_folder "$(engine_home "$1" "$3")"
    choose_port "$1" "$4"
    choose_port "$1-transport" $(($4 + 1))
}

# engine_run NAME KIND VERSION
engine_run() {
    local name=$1 lib home jdk options=()
    lib=$(engine_lib "$2" "$3")
    home=$(engine_home "$1" "$3")
    jdk=$(engine_jdk "$2-$3")
    # Newer JDKs warn about each library that calls native code; older ones do not know the option.
    if [ -n "$(find_jdk 21)" ] && [ "$jdk" = "$(find_jdk 21)" ]; then options+=(--enable-native-access=ALL-UNNAMED); fi
    printf '%s' "$3" >"$STACK_DIR/$name.version"
    spawn "$name" "$home" "$jdk/bin/java" -Xms1g -Xmx1g "${options[@]}" -cp "$lib/classes:$lib/jars/*" EngineNode \
        "$home" "$stack_name" "$(port_of "$name")" "$(port_of "$name-transport")"
}

engine_where() { printf '127.0.0.1:%s, version %s' "$(port_of "$1")" "$(cat "$STACK_DIR/$1.version" 2>/dev/null)"; }

# Ready is an engine that answers with our cluster's name: a stranger on the port does not count.
engine_ready() {
    local name=$1 port
    # The port that the engine says it took, should it be another.
    port=$(tail -c "+${log_start:-1}" "$STACK_DIR/log/$name.log" 2>/dev/null |
        sed -nE 's/.*HttpServerTransport.*publish_address \{[^}]*:([0-9]+)\}.*/\1/p' | tail -n 1)
    if [ -n "$port" ] && [ "$port" != "$(port_of "$name")" ]; then remember_port "$name" "$port"; fi
    curl -s --noproxy '*' -m 2 "http://127.0.0.1:$(port_of "$name")/_cluster/health" 2>/dev/null |
        grep -q "\"cluster_name\":\"$stack_name\",\"status\":\"\(green\|yellow\)\""
}
