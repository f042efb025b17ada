#!/bin/sh
# site.sh HOST:PORT SITE SETTINGS CLIENT [ARGUMENTS OF hiso worker start]: starts worker and
# SuperNode of a data holder, stays in the foreground. Needs keys/ca.pem and keys/SITE here.
set -eu
. "$(dirname "$0")/env.sh"
[ $# -ge 4 ] || { echo "usage: $0 HOST:PORT SITE SETTINGS CLIENT [ARGUMENTS...]" >&2; exit 2; }
superlink=$1 site=$2 settings=$3 client=$4; shift 4
hiso worker start "$settings" --client "$client" --folder "worker-$site" "$@" &
worker=$!
flower-supernode --superlink "$superlink" --root-certificates keys/ca.pem \
    --auth-supernode-private-key "keys/$site" --port "${SUPERNODE_PORT:-9094}" \
    --node-config "worker=\"$PWD/worker-$site\"" &
supernode=$!
trap 'kill $worker $supernode 2>/dev/null; wait' INT TERM
while kill -0 $supernode 2>/dev/null; do
    wait $worker || true
    sleep 2  # the watchdog ended it, or a crash: it goes on where it stood
    hiso worker start "$settings" --client "$client" --folder "worker-$site" "$@" &
    worker=$!
done
kill $worker
