#!/bin/sh
# keys.sh HOST: makes keys/ on the server, with a certificate authority of your own and a certificate
# for HOST, the name or address by which sites reach the server. ca.pem goes to every site, over a
# channel that you trust; server.key stays; keep ca.key offline, and bring it back for renew.sh.
# Each site makes its own key with site-key.sh: put the .pub files that they send into keys/.
# Existing keys are kept; a certificate for another host is refused.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 HOST" >&2; exit 2; }
umask 077
mkdir -p keys
chmod 700 keys
if [ ! -e keys/ca.pem ]; then
    trap 'rm -f keys/*.new' EXIT
    openssl ecparam -name secp384r1 -genkey -noout -out keys/ca.key.new
    openssl req -new -key keys/ca.key.new -subj "/CN=hiso federation" -out keys/csr.new
    printf '%s\n' basicConstraints=critical,CA:TRUE,pathlen:0 \
        keyUsage=critical,keyCertSign,cRLSign subjectKeyIdentifier=hash > keys/extensions.new
    openssl x509 -req -sha384 -in keys/csr.new -signkey keys/ca.key.new -days 3650 \
        -set_serial "0x$(openssl rand -hex 16)" -extfile keys/extensions.new \
        -out keys/ca.pem.new 2>/dev/null
    mv keys/ca.key.new keys/ca.key
    mv keys/ca.pem.new keys/ca.pem
fi
if [ ! -e keys/server.pem ]; then
    exec "$(dirname "$0")/renew.sh" "$1"
fi
case $1 in *:*) check=-checkip ;; *[!0-9.]*) check=-checkhost ;; *) check=-checkip ;; esac
if ! openssl x509 -in keys/server.pem -noout $check "$1" | grep -q "does match"; then
    echo "keys/server.pem is not for $1. For a certificate for $1: $(dirname "$0")/renew.sh $1" >&2
    exit 1
fi
openssl x509 -in keys/server.pem -noout -checkend 2592000 ||
    echo "keys/server.pem ends within 30 days: run $(dirname "$0")/renew.sh $1"
