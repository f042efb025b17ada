#!/bin/sh
# site.sh HOST:PORT SITE SETTINGS CLIENT [ARGUMENTS OF hiso worker start]: the worker of a data
# holder, with the certificate keys/ca.pem and the key keys/SITE. Stays in the foreground, and starts
# the worker again when it was killed or ended by its watchdog; not when it was stopped, and not when
# settings, folder, model or data are wrong.
set -eu
[ $# -ge 4 ] || { echo "usage: $0 HOST:PORT SITE SETTINGS CLIENT [ARGUMENTS...]" >&2; exit 2; }
superlink=$1 site=$2 settings=$3 client=$4; shift 4
worker= stopped=
trap 'stopped=yes; kill $worker 2>/dev/null || :' INT TERM
while :; do
    hiso worker start "$settings" --client "$client" --folder "worker-$site" \
        --superlink "$superlink" --ca keys/ca.pem --key "keys/$site" "$@" &
    worker=$! code=0
    wait $worker || code=$?
    if [ "$stopped" ]; then wait $worker || :; exit; fi
    case $code in 0 | 2 | 3 | 5) exit $code ;; esac
    sleep 2
done
