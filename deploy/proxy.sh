#!/bin/sh
# proxy.sh [PORT [SUPERLINK_PORT]]: opens to the world, at PORT, what sites need of a SuperLink
# that listens on 127.0.0.1 (`server.sh 9093 127.0.0.1`), and nothing else. Needs nginx and the keys
# that server.sh has; stays in the foreground.
set -eu
. "$(dirname "$0")/env.sh"
port=${1:-9092} superlink=${2:-9093}
mkdir -p "$FLWR_HOME/nginx"
cat > "$FLWR_HOME/nginx/nginx.conf" <<END
daemon off;
error_log stderr;
pid nginx.pid;
events {}
http {
    access_log off;
    client_max_body_size 300m;         # an envelope is at most 256 MiB
    proxy_request_buffering off;       # nothing is kept on the disk
    proxy_max_temp_file_size 0;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {
        listen $port ssl;
        ssl_certificate "$PWD/keys/server.pem";
        ssl_certificate_key "$PWD/keys/server.key";
        location /v1/fleet/ {
            proxy_pass https://127.0.0.1:$superlink;
            proxy_http_version 1.1;
            proxy_ssl_trusted_certificate "$PWD/keys/ca.pem";
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
        }
        location / { return 403; }
    }
}
END
exec nginx -e stderr -p "$FLWR_HOME/nginx" -c nginx.conf
