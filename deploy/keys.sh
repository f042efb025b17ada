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
    openssl req -new -newkey rsa:4096 -nodes -subj "/CN=hiso federation" \
        -keyout keys/ca.key -out keys/csr 2>/dev/null
    printf '%s\n' basicConstraints=critical,CA:TRUE keyUsage=critical,keyCertSign,cRLSign \
        subjectKeyIdentifier=hash > keys/extensions
    openssl x509 -req -in keys/csr -signkey keys/ca.key -days 3650 -extfile keys/extensions \
        -out keys/ca.pem 2>/dev/null
    openssl req -new -newkey rsa:4096 -nodes -subj "/CN=$host" \
        -keyout keys/server.key -out keys/csr 2>/dev/null
    printf '%s\n' "subjectAltName=$name,DNS:localhost,IP:127.0.0.1" basicConstraints=CA:FALSE \
        keyUsage=critical,digitalSignature extendedKeyUsage=serverAuth \
        subjectKeyIdentifier=hash authorityKeyIdentifier=keyid > keys/extensions
    openssl x509 -req -in keys/csr -CA keys/ca.pem -CAkey keys/ca.key -CAcreateserial -days 825 \
        -extfile keys/extensions -out keys/server.pem 2>/dev/null
    rm keys/csr keys/extensions
fi
for site in "$@"; do
    [ -e "keys/$site" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -C "$site" -f "keys/$site"
done
ls -l keys
