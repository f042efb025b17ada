"""The scripts of deploy/, as a new user would run them, with TLS and registered SuperNodes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .federation import Deployment, free_port, write_toml

pytestmark = [pytest.mark.flower, pytest.mark.timeout(300)]
SCRIPTS = Path(__file__).parents[2] / "deploy"


@pytest.fixture
def secured(tmp_path, settings):
    """Server and site in folders of their own, with the keys that belong there."""
    site = Deployment(tmp_path)
    for name in ("server", "site", "stranger"):
        (tmp_path / name).mkdir()
    only = settings | {"clients": 1, "sample": 1, "rounds": 2}
    for name in ("server", "site"):
        write_toml(tmp_path / name / "settings.toml", only)
    server = tmp_path / "server"
    for names in (["site"], ["site", "later"]):  # a second time, to add one
        subprocess.run([SCRIPTS / "keys.sh", "127.0.0.1", *names], cwd=server, check=True)
    for name in ("ca.pem", "site"):
        (tmp_path / "site" / "keys").mkdir(exist_ok=True)
        shutil.copy(server / "keys" / name, tmp_path / "site" / "keys")
    site.env.pop("FLWR_HOME")
    try:
        yield site
    finally:
        site.close()


def test_the_documented_path_works_and_a_stranger_is_refused(secured):
    """The site comes before the server knows it, and waits."""
    folder, port = secured.folder, secured.port
    secured.env["SUPERNODE_PORT"] = str(free_port())
    secured.start(
        "site", SCRIPTS / "site.sh", f"127.0.0.1:{port}", "site", "settings.toml", 0, "--share",
        folder=folder / "site",
    )  # fmt: skip
    secured.start("server", SCRIPTS / "server.sh", port, folder=folder / "server")
    secured.wait("registration", lambda: secured.logs().count("registered successfully") == 2)
    secured.env["FLWR_HOME"] = str(folder / "server" / "flower")
    secured.start(
        "serve", "hiso", "serve", "settings.toml", "--out", "run", folder=folder / "server"
    )

    stranger = folder / "stranger"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ecdsa", "-b", "384", "-N", "", "-f", stranger / "me"]
    )
    ca = folder / "site" / "keys" / "ca.pem"
    for name, arguments in {
        "unregistered": [
            "--root-certificates",
            ca,
            "--auth-supernode-private-key",
            stranger / "me",
        ],
        "keyless": ["--root-certificates", ca],
    }.items():
        secured.start(
            name, "flower-supernode", "--superlink", f"127.0.0.1:{port}", "--port", free_port(),
            "--max-retries", 1, *arguments, folder=stranger,
        )  # fmt: skip
    for name in ("unregistered", "keyless"):
        assert secured.processes[name].wait(60) != 0, secured.logs()
        print((folder / f"{name}.out").read_text()[-300:])
    secured.wait("end of the run", (folder / "server" / "run" / "summary.json").is_file, 120)
