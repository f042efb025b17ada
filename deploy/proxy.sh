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
    client_max_body_size 1100k;        # what a site sends: an answer of at most 1 MiB
    client_header_timeout 20s;
    client_body_timeout 20s;
    client_body_buffer_size 1200k;     # nothing is kept on the disk
    proxy_max_temp_file_size 0;        # a log for a site may be large: it is passed on as it comes
    limit_req_zone \$binary_remote_addr zone=requests:1m rate=100r/s;
    limit_conn_zone \$binary_remote_addr zone=connections:1m;
    limit_req_status 503;              # Flower tries again after this status
    limit_conn_status 503;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream superlink {
        server 127.0.0.1:$superlink;
        keepalive 32;
    }
    server {
        listen $port ssl;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_certificate "$PWD/keys/server.pem";
        ssl_certificate_key "$PWD/keys/server.key";
        location /v1/fleet/ {
            limit_req zone=requests burst=200 nodelay;  # 20 sites at one address, 5 polls a second
            limit_conn connections 100;
            proxy_pass https://superlink;
            proxy_http_version 1.1;
            proxy_set_header Connection "";             # keeps connections to the SuperLink open
            proxy_ssl_trusted_certificate "$PWD/keys/ca.pem";
            proxy_ssl_verify on;
            proxy_ssl_name localhost;
        }
        location / { return 403; }
    }
}
END
exec nginx -e stderr -p "$FLWR_HOME/nginx" -c nginx.conf
