#!/bin/sh
# site.sh HOST:PORT SITE SETTINGS CLIENT [ARGUMENTS OF hiso worker start]: starts worker and
# SuperNode of a data holder, stays in the foreground. Needs keys/ca.pem and keys/SITE here.
# Whichever of the two fails is started again: after a crash, after the watchdog, and when the
# server does not know this site yet.
set -eu
. "$(dirname "$0")/env.sh"
[ $# -ge 4 ] || { echo "usage: $0 HOST:PORT SITE SETTINGS CLIENT [ARGUMENTS...]" >&2; exit 2; }
superlink=$1 site=$2 settings=$3 client=$4; shift 4

keep() { # runs a command until it ends with 0, or this is told to stop
    child=
    trap 'kill $child 2>/dev/null; wait $child; exit' INT TERM
    while :; do
        "$@" &
        child=$!
        if wait $child; then exit; fi
        sleep 5 &
        child=$!
        wait $child
    done
}

keep hiso worker start "$settings" --client "$client" --folder "worker-$site" "$@" &
worker=$!
keep flower-supernode --superlink "$superlink" --root-certificates keys/ca.pem \
    --auth-supernode-private-key "keys/$site" --port "${SUPERNODE_PORT:-9094}" \
    --node-config "worker=\"$PWD/worker-$site\"" &
supernode=$!
trap 'kill $worker $supernode 2>/dev/null; wait; exit' INT TERM
wait $supernode
kill $worker 2>/dev/null
wait
