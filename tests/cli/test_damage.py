"""The command line where a run folder is damaged, on a full disk, or read-only."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from hiso import errors, simulate
from hiso.errors import HisoError, StorageError
from hiso.ring.ledger.ledger import Ledger
from hiso.run.folder import RunFolder
from hiso.run.inspect import inspect_run
from hiso.run.observer import Silent

from .. import process
from ..process import Done, Hiso, flags
from ..readonly import run_read_only

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def original(tmp_path_factory, small_run) -> Path:
    """The folder of a finished run, not to be altered."""
    folder = tmp_path_factory.mktemp("original") / "run"
    simulate(out=folder, **small_run, snapshot_every=2)
    return folder


@pytest.fixture
def run(tmp_path, original) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def digest_of(folder: Path) -> str:
    return json.loads((folder / "summary.json").read_text())["digest"]


DAMAGE = {
    "pages": None,
    "settings": "UPDATE run SET settings = substr(settings, 2)",
    "evaluations": "UPDATE evaluations SET metrics = 'x'",
    "losses": "UPDATE records SET loss = 'x' WHERE round = 3",
    "replies": "UPDATE replies SET set_aside = x'00' WHERE round = 3",
    "bytes": "UPDATE records SET bytes = substr(bytes, 2) WHERE round = 3",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_ledger_ends_every_command_with_6(run, hiso, damage):
    ledger = run / "ledger.sqlite"
    if (query := DAMAGE[damage]) is not None:
        with closing(sqlite3.connect(ledger)) as db, db:
            db.execute(query)
    else:
        data = bytearray(ledger.read_bytes())
        data[4096:] = bytes(len(data) - 4096)
        ledger.write_bytes(data)
    for command in (["inspect", "run"], ["report", "run"], ["run", "--out", "run"]):
        done = hiso(*command)
        assert done.code == 6, done.err
        assert "ledger.sqlite" in done.err
        assert "Traceback" not in done.err


def _limited(size: int, arguments: list[str], folder: str, out: str, err: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # Python ignores SIGXFSZ
    process._command(arguments, folder, out, err)


def on_a_disk_of(size: int, hiso: Hiso, *arguments: object) -> Done:
    """Runs `hiso ARGUMENTS` where no file may become longer."""
    texts = [str(argument) for argument in arguments]
    out, err = (str(hiso.folder / name) for name in (".out", ".err"))
    done = process._FORK.Process(target=_limited, args=(size, texts, str(hiso.folder), out, err))
    done.start()
    return hiso.end(done)


@pytest.mark.parametrize(("size", "begun"), [(3_000, False), (190_000, True)])
def test_a_full_disk_ends_with_7_and_the_same_command_goes_on(
    tmp_path, original, hiso, base, size, begun
):
    command = ("run", *flags(base), "--out", "run", "--json")
    done = on_a_disk_of(size, hiso, *command)
    assert done.code == 7, done.err
    assert "Traceback" not in done.err
    assert RunFolder(tmp_path / "run").has_run() is begun
    assert not begun or 0 < rounds_in(tmp_path / "run" / "ledger.sqlite") < 6
    again = hiso(*command)
    assert again.code == 0, again.err
    assert again.json["digest"] == digest_of(original)


def test_a_disk_that_is_full_for_a_derived_file_loses_nothing(run, hiso):
    digest = digest_of(run)
    for name in ("metrics.jsonl", "summary.json"):
        (run / "summary.json").unlink(missing_ok=True)
        (run / f"{name}.partial").symlink_to("/dev/full")
        done = hiso("run", "--out", "run")
        assert done.code == 7, done.err
        assert name in done.err
        assert "Traceback" not in done.err
        assert not list(run.glob("*.partial"))
    done = hiso("run", "--out", "run", "--json")
    assert done.json["digest"] == digest


def test_a_disk_that_is_full_for_a_snapshot_loses_nothing(tmp_path, original, hiso, base):
    command = ("run", *flags(base), "--snapshot-every", 2, "--out", "run", "--json")
    done = on_a_disk_of(300_000, hiso, *command)
    assert done.code == 7, done.err
    assert "position-00000002.safetensors" in done.err
    assert "Traceback" not in done.err
    assert rounds_in(tmp_path / "run" / "ledger.sqlite") == 2
    assert not list((tmp_path / "run" / "snapshots").iterdir())
    assert hiso(*command).json["digest"] == digest_of(original)


class FillsTheDisk(Silent):
    """From the first round on, there is no room for a line of metrics.jsonl."""

    def __init__(self, folder: Path) -> None:
        self.metrics = folder / "metrics.jsonl"

    def started(self, position: int, rounds: int) -> None:
        self.metrics.unlink()
        self.metrics.symlink_to("/dev/full")


def test_a_disk_that_is_full_in_a_round_has_the_round(tmp_path, original, base):
    folder = tmp_path / "run"
    with pytest.raises(StorageError, match=r"metrics\.jsonl"):
        simulate(out=folder, observer=FillsTheDisk(folder), **base)
    assert inspect_run(folder, 1)["facts"]["rounds"] == 1
    done = simulate(out=folder, **base)
    assert done["digest"] == digest_of(original)
    assert not (folder / "metrics.jsonl").is_symlink()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 6 + 5


def test_every_error_has_its_exit_code_in_the_documentation():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    kinds = [kind for kind in kinds if kind is not HisoError and issubclass(kind, HisoError)]
    text = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| (.*?) \|", text, re.MULTILINE))
    for kind in kinds:
        assert f"`{kind.__name__}`" in rows[str(kind.exit_code)]
    assert len({kind.exit_code for kind in kinds}) == len({*rows} - {"0", "1", "130"})


COMMANDS = """
import sys
from hiso.cli import main

for arguments in (
    ["inspect", "run", "--json"],
    ["eval", "run", "--json"],
    ["report", "run", "--out", "report.html"],
    ["run", "--out", "run", "--change", "rounds=8"],
    ["run", *sys.argv[1:], "--out", "run/another"],
):
    sys.argv = ["hiso", *arguments]
    try:
        main()
    except SystemExit as end:
        print("code", end.code, flush=True)
"""


def test_a_finished_run_on_a_read_only_medium_is_inspected_evaluated_and_reported(run, base):
    out = run_read_only(run, [sys.executable, "-c", COMMANDS, *flags(base)], run.parent)
    told = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert told[0]["facts"]["rounds"] == told[1]["position"] == 6
    assert told[0]["facts"]["digest"] == told[1]["digest"] == digest_of(run)
    codes = [line for line in out.splitlines() if line.startswith("code")]
    assert codes == ["code 0"] * 3 + ["code 7"] * 2
    assert (run.parent / "report.html").exists()


def test_an_interrupted_run_is_its_ledger_alone(tmp_path, hiso, base):
    started = hiso.start("run", *flags(base | {"rounds": 100_000, "lr": 1e-5}), "--out", "run")
    ledger = tmp_path / "run" / "ledger.sqlite"
    while started.is_alive() and not (RunFolder(ledger.parent).has_run() and rounds_in(ledger) > 3):
        started.join(0.01)
    with closing(sqlite3.connect(ledger)) as other:  # which has the file open to the end
        assert other.execute("SELECT count(*) FROM run").fetchone() == (1,)
        os.kill(started.pid, signal.SIGINT)
        assert hiso.end(started).code == 130
        shutil.copy(ledger, tmp_path / "alone.sqlite")
        with Ledger.read(ledger) as whole, Ledger.read(tmp_path / "alone.sqlite") as alone:
            assert alone.position == whole.position > 3


def rounds_in(ledger: Path) -> int:
    with Ledger.read(ledger) as opened:
        return opened.position
