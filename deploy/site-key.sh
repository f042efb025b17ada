#!/bin/sh
# site-key.sh SITE: makes this site's private key, keys/SITE, which never leaves this machine, and
# keys/SITE.pub, which goes to the server's keys/. An existing key is kept. The fingerprint that it
# shows lets the server's operator check, by telephone for example, that the right file has arrived.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 SITE" >&2; exit 2; }
umask 077
mkdir -p keys
chmod 700 keys
[ -e "keys/$1" ] || ssh-keygen -q -t ecdsa -b 384 -N "" -C "$1" -f "keys/$1"
ssh-keygen -l -f "keys/$1.pub"
