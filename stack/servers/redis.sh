# Redis, without persistence: a restart empties it, which the tests make use of.
# shellcheck shell=bash

redis_prepare() {
    command -v redis-server >/dev/null || die "redis-server is missing; run stack/install"
    server_folder "$STACK_DIR/data"
    server_folder "$STACK_DIR/data/redis"
    choose_port redis 16379
}

redis_run() {
    spawn redis "$STACK_DIR/data/redis" redis-server --port "$(port_of redis)" --bind 127.0.0.1 --save '' \
        --appendonly no --daemonize no --dir "$STACK_DIR/data/redis"
}

redis_ready() {
    [ "$(redis-cli -h 127.0.0.1 -p "$(port_of redis)" ping 2>/dev/null)" = PONG ]
}

redis_where() { printf '127.0.0.1:%s, version %s' "$(port_of redis)" "$(redis-server --version | sed -E 's/.*v=([0-9.]+).*/\1/')"; }

redis_signal() { if [ "$1" = immediate ]; then echo KILL; else echo TERM; fi; }
