"""The scripts of deploy/, as a new user would run them, with TLS and registered sites."""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
from contextlib import ExitStack, closing, suppress
from http.client import HTTPSConnection
from pathlib import Path

import psutil
import pytest

from hiso.errors import ProtocolError
from hiso.flower.access import Access
from hiso.flower.fleet import Away, Fleet
from hiso.flower.status import read_status
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.ledger.runfile import Owner

from ..modes import readable_by_others
from .federation import BIN, ROOT, Deployment, free_port, write_toml

pytestmark = [pytest.mark.flower, pytest.mark.timeout(300)]
SCRIPTS = ROOT / "deploy"


@pytest.fixture
def secured(tmp_path, settings):
    """Server and site in folders of their own, with the keys that belong there."""
    site = Deployment(tmp_path)
    for name in ("server", "site", "stranger"):
        (tmp_path / name).mkdir()
    only = settings | {"clients": 1, "sample": 1, "rounds": 2}
    for name in ("server", "site"):
        write_toml(tmp_path / name / "settings.toml", only)
    server, here = tmp_path / "server", tmp_path / "site"
    subprocess.run([SCRIPTS / "keys.sh", "127.0.0.1"], cwd=server, check=True)
    for name in ("site", "later"):
        subprocess.run([SCRIPTS / "site-key.sh", name], cwd=here, check=True)
        shutil.copy(here / "keys" / f"{name}.pub", server / "keys")
    shutil.copy(server / "keys" / "ca.pem", here / "keys")
    site.env.pop("FLWR_HOME")
    try:
        yield site
    finally:
        site.close()


@pytest.fixture(params=["proxy.sh", "server.sh alone"])
def port(request, secured) -> int:
    """Where sites reach the SuperLink: through nginx, or as it is."""
    folder, port = secured.folder / "server", secured.port
    if request.param != "proxy.sh":
        secured.start("server", SCRIPTS / "server.sh", port, folder=folder)
        return port
    if shutil.which("nginx") is None:
        pytest.skip("needs nginx")
    outside = free_port()
    secured.start("server", SCRIPTS / "server.sh", port, "127.0.0.1", folder=folder)
    secured.start("proxy", SCRIPTS / "proxy.sh", outside, port, folder=folder)
    return outside


def test_the_documented_path_works_and_a_stranger_is_refused(secured, port, monkeypatch):
    """The site comes before the server knows it, and waits."""
    folder = secured.folder
    secured.start(
        "site", SCRIPTS / "site.sh", f"127.0.0.1:{port}", "site", "settings.toml", 0, "--share",
        folder=folder / "site",
    )  # fmt: skip
    secured.wait("registration", lambda: secured.logs().count("registered successfully") == 2)
    secured.env["FLWR_HOME"] = str(folder / "server" / "flower")
    secured.start(
        "serve", "hiso", "serve", "settings.toml", "--out", "run", folder=folder / "server"
    )

    ca = folder / "site" / "keys" / "ca.pem"
    refused = {
        "unregistered": (key_of(folder, "me"), ca, "it is not registered there"),
        "keyless": (None, ca, "must be registered"),
        "untrusting": (folder / "site" / "keys" / "later", own_ca(folder), "CERTIFICATE_VERIFY"),
        # the SuperLink hangs up; nginx answers that it wants TLS
        "unencrypted": (
            folder / "site" / "keys" / "later",
            None,
            "ProtocolError|ReadError|answers 400",
        ),
    }
    for name, (key, trusted, reason) in refused.items():
        (folder / name).mkdir()
        fleet = Fleet(Access(f"127.0.0.1:{port}", trusted, key), folder / name)
        with pytest.raises(Away, match=reason):
            fleet.join()
        fleet.leave()
    for key, known in (
        (folder / "site" / "keys" / "later", True),
        (refused["unregistered"][0], False),
    ):
        (folder / "asks").mkdir(exist_ok=True)
        fleet = Fleet(Access(f"127.0.0.1:{port}", ca, key), folder / "asks")
        assert fleet.knows_key() is known
        fleet.leave()
    if shutil.which("tinyproxy"):
        a_site_behind_an_http_proxy_connects(secured, port, ca, monkeypatch)
    if port != secured.port:
        only_what_sites_need_is_reached(secured, port, ca)
    secured.wait("end of the run", lambda: secured.processes["serve"].poll() == 0, 120)
    assert (folder / "server" / "run" / "summary.json").is_file()
    shown = subprocess.run(
        ["ssh-keygen", "-l", "-f", folder / "site" / "keys" / "site"],
        check=True, capture_output=True, text=True,
    ).stdout.split()[1]  # fmt: skip
    run = folder / "server" / "run"
    with Ledger.read(run / "ledger.sqlite") as ledger:
        assert ledger.owners() == {0: Owner(shown, "site")}
    assert readable_by_others(run) == []
    assert readable_by_others(folder / "server" / "flower") == []
    assert readable_by_others(folder / "site" / "worker-site") == []
    a_worker_that_was_killed_comes_back(secured)
    if port != secured.port:
        a_number_cannot_be_stolen_but_released(secured, port, Owner(shown, "site"))


def a_site_behind_an_http_proxy_connects(
    secured: Deployment, port: int, ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy passes on bytes that it cannot read."""
    folder = secured.folder / "behind"
    folder.mkdir()
    with monkeypatch.context() as environment:
        environment.setenv("HTTPS_PROXY", f"http://127.0.0.1:{secured.http_proxy()}")
        key = secured.folder / "site" / "keys" / "later"
        fleet = Fleet(Access(f"127.0.0.1:{port}", ca, key), folder)
        fleet.join()
        assert fleet.node
        fleet.leave()
    assert f"CONNECT 127.0.0.1:{port}" in secured.output("tinyproxy")


def a_number_cannot_be_stolen_but_released(secured: Deployment, port: int, owner: Owner) -> None:
    """Another site with a registered key says that it is client 0, while client 0 is there."""
    run = secured.folder / "server" / "run"
    secured.start(
        "thief", SCRIPTS / "site.sh", f"127.0.0.1:{port}", "later", "settings.toml", 0, "--share",
        folder=secured.folder / "site",
    )  # fmt: skip

    def online() -> int:
        command = [BIN / "flwr", "supernode", "list", "--format", "json"]
        done = subprocess.run(command, env=secured.env, capture_output=True, text=True)
        return done.stdout.count('"online"')

    def go_on(*change: object) -> Ledger:
        secured.start("serve", "hiso", "serve", "--out", "run", *change, folder=run.parent)
        secured.wait("end of the run", lambda: secured.processes["serve"].poll() == 0, 120)
        return Ledger.read(run / "ledger.sqlite")

    secured.wait("thief at the SuperLink", lambda: online() == 2)
    log = secured.folder / "site" / "worker-later" / "worker.log"
    secured.wait("thief's worker", lambda: log.is_file() and "is ready" in log.read_text())
    with go_on("--change", "rounds=3") as ledger:
        assert ledger.owners() == {0: owner}
        assert ledger.position == 3
        ((client, round, reason),) = ledger.refusals()
    assert (client, round) == (0, None)
    assert owner.key in reason
    assert "later" in reason
    assert reason in (run / "server.log").read_text()
    secured.kill("site", signal.SIGTERM)
    with pytest.raises(ProtocolError, match="no worker runs"):
        read_status(secured.folder / "site" / "worker-site")
    secured.wait("site gone", lambda: online() == 1)
    with go_on("--change", "rounds=4", "--release", 0) as ledger:
        assert ledger.owners()[0].site == "later"
        assert ledger.position == 4


def a_worker_that_was_killed_comes_back(secured: Deployment) -> None:
    """As site.sh does after a kill or the watchdog."""
    folder = secured.folder / "site" / "worker-site"
    worker = psutil.Process(read_status(folder)["process"])
    worker.kill()
    secured.wait("another worker", lambda: another(folder, worker.pid))


def another(folder: Path, before: int) -> bool:
    with suppress(ProtocolError):
        status = read_status(folder)
        return status["connected"] and status["process"] != before
    return False


def key_of(folder: Path, name: str) -> Path:
    path = folder / "stranger" / name
    command = ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", path]
    subprocess.run(command, check=True)
    return path


def own_ca(folder: Path) -> Path:
    """The certificate of another authority."""
    stranger = folder / "stranger"
    subprocess.run([SCRIPTS / "keys.sh", "127.0.0.1"], cwd=stranger, check=True)
    return stranger / "keys" / "ca.pem"


def only_what_sites_need_is_reached(secured: Deployment, port: int, ca: Path) -> None:
    """Whoever comes through the proxy cannot start runs, register nodes, or pose as the server."""
    home = secured.folder / "stranger" / "flower"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "it"\n\n[superlink.it]\n'
        f'address = "127.0.0.1:{port}"\nroot-certificates = "{ca}"\n'
    )
    env = secured.env | {"FLWR_HOME": str(home)}
    app = Path(__file__).parent / "stranger"
    for words in (["run", app], ["list"], ["supernode", "list"]):
        done = subprocess.run([BIN / "flwr", *words], env=env, capture_output=True, text=True)
        assert done.returncode != 0
        assert "403 Forbidden" in done.stdout + done.stderr

    def connected(at: int) -> closing[HTTPSConnection]:
        context = ssl.create_default_context(cafile=ca)
        context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
        return closing(HTTPSConnection("127.0.0.1", at, timeout=30, context=context))

    def status(at: int, path: str, body: bytes = b"") -> int:
        with connected(at) as connection:
            connection.request("POST", path, body)
            return connection.getresponse().status

    for path in ("/v1/control/list-runs", "/v1/runtime/pull-task-input", "/docs", "/"):
        for way in ("", "/", "/v1/fleet/../..", "/v1/fleet/%2e%2e/%2e%2e", "/v1/fleet/..%2f.."):
            assert status(port, way + path) == 403, way + path
    fleet, control = "/v1/fleet/pull-messages", "/v1/control/list-runs"
    assert status(port, fleet, bytes(1_000_000)) == status(port, fleet)
    assert status(port, fleet, bytes(1_200_000)) == 413
    with ExitStack() as stack:  # requests whose bodies never come
        waiting = [stack.enter_context(connected(port)) for _ in range(101)]
        for connection in waiting:
            connection.putrequest("POST", fleet)
            connection.putheader("Content-Length", "1")
            connection.endheaders()
        assert waiting[-1].getresponse().status == 503
        assert status(port, fleet) == 503
    assert status(port, fleet) == status(secured.port, fleet) not in (403, 404)
    assert status(secured.port, control) not in (403, 404)  # so it was the proxy that refused
