# Shared by the scripts of this folder; sourced, not run.
# shellcheck shell=bash
# shellcheck disable=SC2034  # the scripts that source this use what it sets
set -euo pipefail
umask 022   # the servers run as another user when we are root, and must read what we write

stack_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

say() { printf '%s\n' "$*" >&2; }
die() { say "stack: $*"; exit 1; }

# Servers refuse to run as root, so root starts them as this user.
if [ "$(id -u)" = 0 ]; then
    server_user=${STACK_USER:-postgres}
else
    server_user=$(id -un)
fi

# Where a clone is closed to the server's user (one under /root), the stack lives in /var/tmp instead.
default_dir() {
    if [ "$(id -u)" = 0 ] && id "$server_user" >/dev/null 2>&1 &&
        ! setpriv --reuid="$server_user" --regid="$(id -g "$server_user")" --clear-groups test -x "$stack_root"; then
        printf '/var/tmp/pg_fanout-stack-%s' "$(printf '%s' "$stack_root" | cksum | cut -d' ' -f1)"
    else
        printf '%s/.stack' "$stack_root"
    fi
}

# STACK_DIR holds one stack's data, logs and ports; STACK_CACHE what stacks share: jars, pgrx's settings, tools.
default_dir=$(default_dir)
STACK_CACHE=${STACK_CACHE:-$default_dir}
STACK_DIR=${STACK_DIR:-$default_dir}
mkdir -p "$STACK_DIR" "$STACK_CACHE" || die "cannot write to $STACK_DIR: did another user make it?"
STACK_DIR=$(cd "$STACK_DIR" && pwd)
STACK_CACHE=$(cd "$STACK_CACHE" && pwd)
[ -O "$STACK_DIR" ] || die "$STACK_DIR belongs to $(stat -c %U "$STACK_DIR"); run this as that user, or set STACK_DIR"

# PG=18 asks for a major version: Debian's where it has one for this system, else one of our own (postgres-from-source).
pg_prefix() { printf '%s/postgresql-%s' "$STACK_CACHE" "$1"; }
if [ -n "${PG:-}" ]; then
    PG_CONFIG=/usr/lib/postgresql/$PG/bin/pg_config
    case $PG in 17 | 18) [ -x "$PG_CONFIG" ] || PG_CONFIG=$(pg_prefix "$PG")/bin/pg_config ;; esac
fi
PG_CONFIG=${PG_CONFIG:-/usr/bin/pg_config}
export STACK_DIR STACK_CACHE PG_CONFIG PGRX_HOME="$STACK_CACHE/pgrx"
tools="$STACK_CACHE/tools/bin"   # what stack/install could not put beside another version of the same tool
if [ -d "$tools" ]; then PATH="$tools:$PATH"; fi

# Engines on one machine look for each other; a name for each stack keeps them apart, and tells ours from others.
stack_name="stack-$(printf '%s' "$STACK_DIR" | cksum | cut -d' ' -f1)"
all_servers="postgres opensearch elasticsearch redis"

pg_major() { "$PG_CONFIG" --version | sed -E 's/^[^0-9]*([0-9]+).*/\1/'; }

# Runs a command as the servers' user. No fork: a process keeps the id that we remember.
as_server() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid="$server_user" --regid="$(id -g "$server_user")" --init-groups -- "$@"
    else
        "$@"
    fi
}

# Runs a command as root, for what belongs to the system: packages and PostgreSQL's own folders.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root, and there is no sudo; as root, run: $*"
    fi
}

# Makes a folder that the servers may write to.
server_folder() {
    mkdir -p "$1"
    if [ "$(id -u)" = 0 ]; then chown "$server_user:" "$1"; fi
}

# The newest JDK of at least version $1 (and at most $2): prints its home, or nothing. javac starts our engine classes.
find_jdk() {
    local home version best=0 found=
    for home in "${JAVA_HOME:-}" /usr/lib/jvm/* /opt/java/*; do
        if ! { [ -x "$home/bin/javac" ] && [ -r "$home/release" ]; }; then continue; fi
        version=$(sed -nE 's/^JAVA_VERSION="([0-9]+).*/\1/p' "$home/release")
        if [ "${version:-0}" -ge "$1" ] && [ "$version" -le "${2:-999}" ] && [ "$version" -gt "$best" ]; then
            best=$version found=$home
        fi
    done
    printf '%s' "$found"
}

# --- ports: chosen at the first start, then remembered in a file of NAME=PORT lines ---

port_of() { sed -n "s/^$1=//p" "$STACK_DIR/ports" 2>/dev/null || true; }

listening() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

remember_port() {
    local others
    others=$(grep -v "^$1=" "$STACK_DIR/ports" 2>/dev/null || true)
    printf '%s\n' ${others:+"$others"} "$1=$2" >"$STACK_DIR/ports.new"
    mv "$STACK_DIR/ports.new" "$STACK_DIR/ports"
}

# choose_port NAME FIRST: the remembered port, or another one if something else listens there by now. A second stack
# begins elsewhere: it must not take a port of the first one in the moment that a restart leaves it free.
choose_port() {
    local port tries=0 first=$2
    if [ "$STACK_DIR" != "$default_dir" ]; then first=$(($2 + 40 * (1 + ${stack_name#stack-} % 20))); fi
    port=$(port_of "$1")
    if [ -n "$port" ]; then
        # A process that was killed is a zombie, and its port still taken, while the last of its threads end.
        for _ in $(seq 100); do listening "$port" || break; sleep 0.1; done
    fi
    port=${port:-$first}
    while listening "$port" || grep -q "=$port\$" <(grep -v "^$1=" "$STACK_DIR/ports" 2>/dev/null); do
        port=$((port + 10)) tries=$((tries + 1))
        [ $tries -lt 100 ] || die "no free port for $1 from $2 on"
    done
    remember_port "$1" "$port"
}

# --- processes ---

# A process id comes back for another process some day; together with its start time it does not.
started_at() { sed -E 's/.*\) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# Prints the process id of a server that we started and that is still there.
pid_of() {
    local pid start
    read -r pid start 2>/dev/null <"$STACK_DIR/pid/$1" || return 1
    [ -n "$start" ] && [ "$(started_at "$pid")" = "$start" ] || return 1
    # A zombie has ended, though its parent has not noticed.
    ! grep -q '^State:[[:space:]]*Z' "/proc/$pid/status" 2>/dev/null || return 1
    printf '%s' "$pid"
}

# spawn NAME FOLDER COMMAND…: starts a server in a session of its own, so that Ctrl-C here does not end it.
spawn() {
    local name=$1 folder=$2 pid
    shift 2
    mkdir -p "$STACK_DIR/pid" "$STACK_DIR/log"
    cd "$folder"
    as_server_exec "$@" >>"$STACK_DIR/log/$name.log" 2>&1 </dev/null 9>&- &
    pid=$!
    cd "$OLDPWD"
    printf '%s %s\n' "$pid" "$(started_at "$pid")" >"$STACK_DIR/pid/$name"
}

# Only for the background: it replaces the shell, which makes $! the server's own process id.
# A backtrace for every error of the extension would drown PostgreSQL's log and slow errors down.
as_server_exec() {
    if [ "$(id -u)" = 0 ]; then
        exec setsid setpriv --reuid="$server_user" --regid="$(id -g "$server_user")" --init-groups -- \
            env -u RUST_BACKTRACE HOME="$STACK_DIR" "$@"
    else
        exec setsid env -u RUST_BACKTRACE "$@"
    fi
}

# signal NAME SIGNAL: to a process that is ours, as the user that it runs as.
signal() {
    local pid
    if pid=$(pid_of "$1"); then as_server kill "-$2" "$pid" 2>/dev/null || true; fi
}

# wait_gone NAME SECONDS
wait_gone() {
    local end=$((SECONDS + $2))
    while pid_of "$1" >/dev/null; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.1
    done
}

now_ms() { date +%s%3N; }

seconds_since() { local ms=$(($(now_ms) - $1)); printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100)); }

# Two people may start one stack at a time; the servers must not inherit the lock (spawn closes it).
lock_stack() {
    exec 9>"$STACK_DIR/lock"
    flock -w 600 9 || die "another stack script is at work in $STACK_DIR"
}

# --- one server; servers/NAME.sh defines NAME_prepare, NAME_run, NAME_ready, NAME_where and NAME_signal ---

# shellcheck source=stack/engine.sh
. "$stack_root/stack/engine.sh"
for name in $all_servers; do
    # shellcheck source=/dev/null
    . "$stack_root/stack/servers/$name.sh"
done

check_name() {
    case " $all_servers " in
        *" $1 "*) ;;
        *) die "there is no server called '$1'; there are: $all_servers" ;;
    esac
}

start_server() {
    local name=$1 begun limit
    begun=$(now_ms)
    log_start=1
    if pid_of "$name" >/dev/null && "${name}_ready"; then
        if [ "$name" = postgres ] && postgres_outdated; then
            say "postgres       restarts: pg_fanout was installed after it had started"
            stop_server postgres
        else
            say "$(printf '%-14s already up at %s' "$name" "$("${name}_where")")"
            return 0
        fi
    fi
    if ! pid_of "$name" >/dev/null; then
        "${name}_prepare"
        mkdir -p "$STACK_DIR/log"
        log_start=$(($(stat -c %s "$STACK_DIR/log/$name.log" 2>/dev/null || echo 0) + 1))
        "${name}_run"
    fi
    limit=$((SECONDS + ${STACK_TIMEOUT:-120}))
    until "${name}_ready"; do
        if ! pid_of "$name" >/dev/null || [ $SECONDS -ge $limit ]; then
            say "$name did not start; the end of $STACK_DIR/log/$name.log:"
            tail -c "+$log_start" "$STACK_DIR/log/$name.log" 2>/dev/null | tail -n 25 >&2
            stop_server "$name" immediate
            return 1
        fi
        sleep 0.1
    done
    say "$(printf '%-14s up at %s (%s)' "$name" "$("${name}_where")" "$(seconds_since "$begun")")"
}

# stop_server NAME [immediate]: in order, or at once as a crash would.
stop_server() {
    local name=$1 mode=${2:-fast} begun
    begun=$(now_ms)
    if pid_of "$name" >/dev/null; then
        signal "$name" "$("${name}_signal" "$mode")"
        if ! wait_gone "$name" 60; then
            signal "$name" KILL
            wait_gone "$name" 10 || die "cannot end $name (process $(pid_of "$name"))"
        fi
        say "$(printf '%-14s stopped (%s)' "$name" "$(seconds_since "$begun")")"
    fi
    rm -f "$STACK_DIR/pid/$name"
}
