#!/bin/sh
# server.sh [PORT [ADDRESS]]: starts the SuperLink with TLS, registers the sites of keys/, stays in
# the foreground. Its state is in memory, which makes rounds twice as fast as a database does, and
# hiso needs none of it again: start it again after a crash. ADDRESS 127.0.0.1 keeps it to this
# machine, for proxy.sh.
set -eu
. "$(dirname "$0")/env.sh"
port=${1:-9092} address=${2:-0.0.0.0}
cat > "$FLWR_HOME/config.toml" <<END
[superlink]
default = "hiso"

[superlink.hiso]
address = "127.0.0.1:$port"
root-certificates = "$PWD/keys/ca.pem"
END
flower-superlink --host "$address" --port "$port" \
    --ssl-ca-certfile keys/ca.pem --ssl-certfile keys/server.pem --ssl-keyfile keys/server.key \
    --enable-supernode-auth --disable-runtime-dependency-installation &
superlink=$!
# The second signal ends the connections of a `hiso serve` that shows a run.
trap 'kill $superlink 2>/dev/null; sleep 2; kill -INT $superlink 2>/dev/null; wait $superlink' INT TERM
for key in keys/*.pub; do
    [ -e "$key" ] || { echo "keys/ has no .pub file: no site can connect yet"; break; }
    site=$(basename "$key" .pub)  # hiso serve binds a client number to a key that has a name
    for try in 1 2 3 4 5 6 7 8 9 10; do
        if said=$(flwr supernode register "$key" --name "$site" 2>&1); then break; fi
        case $said in *already*) break ;; esac
        sleep 1
    done
    echo "$key: $said"
done
wait $superlink
