"""Serves a run's page and its metrics to this machine alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from hiso.errors import HisoError, LoadError, SettingsError
from hiso.report.watch.page import problem_page, watch_page
from hiso.run.watch import watch_run

_HERE = "127.0.0.1"
Start = Callable[..., Any]


def watch_server(folder: Path, port: int) -> WSGIServer:
    """A server on 127.0.0.1: `/` is the page, `/metrics` is for Prometheus.

    Each request reads the run anew. A request by another name than 127.0.0.1 or localhost is
    refused: else a web page could give its own name to this address and read the answers.

    Args:
        folder: The run's folder.
        port: The port; 0 for any that is free, then in `server_port`.

    Raises:
        LoadError: The extra `metrics` is not installed.
        SettingsError: The port is taken, or this user may not listen there.
    """
    missing = [name for name in ("jinja2", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise LoadError(f"--port needs {' and '.join(missing)}: pip install 'hiso[metrics]'")
    from prometheus_client.exposition import ThreadingWSGIServer

    try:
        return make_server(_HERE, port, partial(_answer, folder), ThreadingWSGIServer, _Silent)
    except OSError as error:
        raise SettingsError(
            f"cannot listen on port {port} of {_HERE}: {error.strerror}. Choose another --port"
        ) from error


class _Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Logs no requests."""


def _answer(folder: Path, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
    path, host = environ["PATH_INFO"], environ.get("HTTP_HOST", _HERE).partition(":")[0]
    if host not in (_HERE, "localhost"):
        return _text(start, "403 Forbidden", f"this is {_HERE}, not another host")
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return _text(start, "405 Method Not Allowed", "there is nothing to change here")
    if path not in ("/", "/metrics"):
        return _text(start, "404 Not Found", "there are / and /metrics")
    try:
        watched = watch_run(folder)
    except HisoError as error:
        if path == "/metrics":
            return _text(start, "503 Service Unavailable", str(error))
        return _html(start, "503 Service Unavailable", problem_page(str(folder), str(error)))
    if path == "/metrics":
        from prometheus_client import make_wsgi_app

        from hiso.report.watch.metrics import registry_of

        return make_wsgi_app(registry_of(watched))(environ, start)
    return _html(start, "200 OK", watch_page(watched))


def _html(start: Start, status: str, page: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/html; charset=utf-8"), ("Cache-Control", "no-store")])
    return [page.encode()]


def _text(start: Start, status: str, text: str) -> Iterable[bytes]:
    start(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [f"{text}\n".encode()]
