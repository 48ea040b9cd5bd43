# PostgreSQL: whichever PG_CONFIG names; one data folder for each major version.
# shellcheck shell=bash

pg_data() { printf '%s/data/postgres-%s' "$STACK_DIR" "$(pg_major)"; }

# A socket's path holds at most 107 bytes: in a deep clone it has to live elsewhere.
pg_socket_folder() {
    local folder="$STACK_DIR/run"
    if [ ${#folder} -gt 80 ]; then
        if [ -r "$STACK_DIR/run.path" ] && [ -d "$(cat "$STACK_DIR/run.path")" ]; then
            folder=$(cat "$STACK_DIR/run.path")
        else
            folder=$(mktemp -d /tmp/pg_fanout-run.XXXXXX)
            printf '%s' "$folder" >"$STACK_DIR/run.path"
        fi
    fi
    server_folder "$folder"
    printf '%s' "$folder"
}

# After kill -9 of the postmaster a new one refuses to start beside its children, which need a moment to notice, and
# beside its zombie, which the system needs a moment to clear away.
pg_wait_for_remains() {
    local data end process old
    data=$(pg_data)
    end=$((SECONDS + 10))
    for process in /proc/[0-9]*; do
        while [ "$(readlink "$process/cwd" 2>/dev/null)" = "$data" ]; do
            if [ $SECONDS -ge $end ]; then as_server kill -KILL "${process#/proc/}" 2>/dev/null || true; fi
            sleep 0.1
        done
    done
    old=$(as_server head -n 1 "$data/postmaster.pid" 2>/dev/null || true)
    while [ -n "$old" ] && grep -qs '^State:[[:space:]]*Z' "/proc/$old/status" && [ $SECONDS -lt $end ]; do
        sleep 0.1
    done
}

postgres_prepare() {
    local data bin preload=
    [ -x "$PG_CONFIG" ] || die "no pg_config at $PG_CONFIG; run stack/install, or set PG_CONFIG"
    data=$(pg_data)
    bin=$("$PG_CONFIG" --bindir)
    if [ ! -e "$data/PG_VERSION" ]; then
        mkdir -p "$STACK_DIR/data"
        rm -rf "$data"
        server_folder "$data"
        # From a folder that the server's user may read: initdb asks for the current one.
        (cd "$data" && as_server "$bin/initdb" -D "$data" -U postgres --auth=trust -E UTF8 --locale=C.UTF-8 \
            --no-instructions >"$STACK_DIR/initdb.log" 2>&1) || { tail -n 20 "$STACK_DIR/initdb.log" >&2; die "initdb failed"; }
        echo "include 'stack.conf'" >>"$data/postgresql.conf"
    fi
    pg_wait_for_remains
    choose_port postgres 25432   # below the ports that the system gives to clients
    # A server that preloads a library which isn't there does not start.
    if [ -e "$(pg_library)" ]; then preload=pg_fanout; fi
    cat >"$data/stack.conf" <<CONF
# Written by stack/up at every start.
listen_addresses = '127.0.0.1'
port = $(port_of postgres)
unix_socket_directories = '$(pg_socket_folder)'
shared_preload_libraries = '$preload'
max_prepared_transactions = 20
max_worker_processes = 16
max_connections = 250
shared_buffers = 256MB
wal_level = replica
logging_collector = off
log_line_prefix = '%m [%p] %q%u@%d '
CONF
}

pg_library() { printf '%s/pg_fanout.so' "$("$PG_CONFIG" --pkglibdir)"; }

# Whether the library was installed (again) after the server had started.
postgres_outdated() { [ "$(pg_library)" -nt "$(pg_data)/stack.conf" ]; }

postgres_run() {
    local data
    data=$(pg_data)
    spawn postgres "$data" "$("$PG_CONFIG" --bindir)/postgres" -D "$data"
}

postgres_ready() {
    "$("$PG_CONFIG" --bindir)/pg_isready" -q -h 127.0.0.1 -p "$(port_of postgres)" -d postgres -U postgres -t 2
}

postgres_where() {
    printf '127.0.0.1:%s, version %s' "$(port_of postgres)" "$("$PG_CONFIG" --version | sed -E 's/^[^0-9]*([0-9.]+).*/\1/')"
    if grep -q "^shared_preload_libraries = ''" "$(pg_data)/stack.conf"; then printf ', without pg_fanout'; fi
}

# INT is a fast shutdown, QUIT an immediate one.
postgres_signal() { if [ "$1" = immediate ]; then echo QUIT; else echo INT; fi; }
