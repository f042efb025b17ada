#!/bin/sh
# renew.sh HOST: makes a new key and certificate for the server, for 397 days, from the certificate
# authority of keys.sh; sites keep their ca.pem. Needs keys/ca.key, which may go offline again.
# Afterwards start server.sh, proxy.sh and hiso serve again: they keep what they have.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 HOST" >&2; exit 2; }
host=$1
umask 077
for file in ca.pem ca.key; do
    [ -e "keys/$file" ] || { echo "keys/$file is missing: bring it back" >&2; exit 1; }
done
case $host in *:*) name="IP:$host" ;; *[!0-9.]*) name="DNS:$host" ;; *) name="IP:$host" ;; esac
trap 'rm -f keys/*.new' EXIT
openssl ecparam -name prime256v1 -genkey -noout -out keys/server.key.new
openssl req -new -key keys/server.key.new -subj "/CN=hiso server" -out keys/csr.new
printf '%s\n' "subjectAltName=$name,DNS:localhost,IP:127.0.0.1" basicConstraints=critical,CA:FALSE \
    keyUsage=critical,digitalSignature extendedKeyUsage=serverAuth \
    subjectKeyIdentifier=hash authorityKeyIdentifier=keyid > keys/extensions.new
openssl x509 -req -sha256 -in keys/csr.new -CA keys/ca.pem -CAkey keys/ca.key -days 397 \
    -set_serial "0x$(openssl rand -hex 16)" -extfile keys/extensions.new \
    -out keys/server.pem.new 2>/dev/null
openssl verify -CAfile keys/ca.pem keys/server.pem.new >/dev/null
mv keys/server.key.new keys/server.key
mv keys/server.pem.new keys/server.pem
echo "keys/server.pem: for $host, $(openssl x509 -in keys/server.pem -noout -enddate)"
