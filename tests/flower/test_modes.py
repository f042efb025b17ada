"""Whatever the umask, a worker's and a server's files are for their owner alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hiso.core.identity import Identity
from hiso.core.method.registry import HiSo

from ..modes import readable_by_others
from .federation import BIN, write_toml

pytestmark = [pytest.mark.flower, pytest.mark.timeout(120)]
SERVER = """
import sys
from pathlib import Path
from hiso.core.identity import Identity
from hiso.flower.logs import keep_private, log_to
from hiso.ring.ledger.ledger import Ledger
out = Path(sys.argv[1])
keep_private(out)
log_to(out / "server.log")
with Ledger.create(out / "ledger.sqlite", Identity.parse(sys.argv[2]), {}) as ledger:
    ledger.refuse(1, 0, "x")
    print(*sorted(path.name for path in out.iterdir()))
    sys.stdout.flush()
    sys.stdin.read()
"""


def test_the_servers_files_are_private_while_it_writes(tmp_path):
    out = tmp_path / "run"
    out.mkdir(mode=0o777)  # as an earlier version may have left it
    out.chmod(0o777)
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, out, Identity(method=HiSo(), seed=0).text],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, umask=0,
    )  # fmt: skip
    assert process.stdout is not None
    names = process.stdout.readline().split()
    assert names == ["ledger.sqlite", "ledger.sqlite-shm", "ledger.sqlite-wal", "server.log"]
    assert readable_by_others(out) == []
    process.communicate("")
    assert readable_by_others(out) == []


def test_a_workers_files_are_private(tmp_path, settings):
    write_toml(tmp_path / "settings.toml", settings)
    folder = tmp_path / "worker"
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            [BIN / "hiso", "worker", "start", "settings.toml", "--client", "0", "--share",
             "--folder", folder, "--superlink", "127.0.0.1:1", "--insecure"],
            cwd=tmp_path, stdout=out, stderr=out, umask=0,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    try:
        log = folder / "worker.log"
        while not (log.is_file() and "is ready" in log.read_text()):
            assert process.poll() is None, (tmp_path / "out").read_text()
            time.sleep(0.1)
        assert readable_by_others(folder) == []
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def test_a_new_run_folder_is_private(tmp_path, settings):
    write_toml(tmp_path / "settings.toml", settings | {"rounds": 1})
    command = [BIN / "hiso", "run", "settings.toml", "--out", "runs/first"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, cwd=tmp_path, umask=0, check=True, capture_output=True, env=env)
    run = Path(tmp_path / "runs" / "first")
    assert run.stat().st_mode & 0o777 == 0o700
    assert (run / "summary.json").is_file()
