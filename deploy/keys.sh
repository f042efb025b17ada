#!/bin/sh
# keys.sh HOST SITE...: makes keys/ with a certificate for the server HOST and a key for each site.
# Run it on the server. ca.pem and SITE go to that site, over a channel that you trust; ca.key and
# server.key stay. Existing keys are kept: run it again to add a site.
set -eu
[ $# -ge 2 ] || { echo "usage: $0 HOST SITE..." >&2; exit 2; }
host=$1; shift
umask 077
mkdir -p keys
case $host in *[!0-9.]*) name="DNS:$host" ;; *) name="IP:$host" ;; esac
if [ ! -e keys/server.pem ]; then
    openssl req -x509 -newkey rsa:4096 -nodes -days 3650 -subj "/CN=hiso federation" \
        -keyout keys/ca.key -out keys/ca.pem 2>/dev/null
    openssl req -newkey rsa:4096 -nodes -subj "/CN=$host" \
        -keyout keys/server.key -out keys/server.csr 2>/dev/null
    printf 'subjectAltName=%s,DNS:localhost,IP:127.0.0.1\n' "$name" > keys/server.ext
    openssl x509 -req -in keys/server.csr -CA keys/ca.pem -CAkey keys/ca.key -CAcreateserial \
        -days 825 -extfile keys/server.ext -out keys/server.pem 2>/dev/null
    rm keys/server.csr keys/server.ext
fi
for site in "$@"; do
    [ -e "keys/$site" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -C "$site" -f "keys/$site"
done
ls -l keys
