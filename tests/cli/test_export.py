"""The commands export, apply, diff and predict."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from ..process import Hiso, flags
from ..terminal import NOWHERE, Terminal
from ..tiny import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_run):
    """A folder with a run and its adapter."""
    folder = tmp_path_factory.mktemp("way-out")
    hiso = Hiso(folder)
    done = hiso("run", *flags(small_run), "--out", "run", "--json")
    assert done.code == 0, done.err
    (folder / "summary.json").write_text(done.out)
    done = hiso("export", "run", "--adapter", "adapter", "--json")
    assert done.code == 0, done.err
    assert done.json["digest"] == digest_of(folder)
    return folder


def digest_of(folder: Path) -> str:
    return json.loads((folder / "summary.json").read_text())["digest"]


def test_export_and_apply_write_the_same_model(folder, tiny_model):
    hiso = Hiso(folder)
    one = hiso("export", "run", "--model", "model", "--json")
    other = hiso("apply", "adapter", "--model", tiny_model, "--out", "applied", "--json")
    early = hiso("export", "run", "--model", "early", "--position", 2, "--json")
    for done in (one, other, early):
        assert (done.code, done.err) == (0, "")
    assert one.json["digest"] == other.json["digest"] == digest_of(folder)
    evaluated = hiso("eval", "run", "--position", 2, "--json").json
    assert early.json["digest"] == evaluated["digest"]
    weights = [folder / name / "model.safetensors" for name in ("model", "applied", "early")]
    assert weights[0].read_bytes() == weights[1].read_bytes() != weights[2].read_bytes()
    told = hiso("export", "run", "--adapter", "again")
    assert digest_of(folder) in told.out
    assert "KB" in told.out


def test_diff(folder):
    hiso = Hiso(folder)
    told = hiso("diff", "run", "adapter", "--json")
    assert told.err == ""
    assert (told.json["position"], told.json["identity_equal"]) == (6, True)
    shutil.copytree(folder / "run", folder / "other")
    hiso("run", "--out", "other", "--rollback", 3, "--change", "lr=0.005", "--json")
    told = hiso("diff", "adapter", "other")
    assert told.code == 0, told.err
    assert "they differ from position 3" in told.out
    shutil.rmtree(folder / "other")


def test_predict_texts_files_and_standard_input(folder, tiny_model, reviews):
    hiso = Hiso(folder)
    texts = ["A lovely film.", "dull"]
    asked = [word for text in texts for word in ("--text", text)]
    done = hiso("predict", "run", *asked, "--base", "--json")
    assert (done.code, done.err) == (0, "")
    assert done.json["digest"] == digest_of(folder)
    said = done.json["predictions"]
    assert [one["input"] for one in said] == [{"text": text} for text in texts]
    for one in said:
        for voice in (one["tuned"], one["base"]):
            assert set(voice["probabilities"]) == {"neg", "pos"}
            assert sum(voice["probabilities"].values()) == pytest.approx(1)
            assert voice["label"] == max(voice["probabilities"], key=voice["probabilities"].get)
    piped = hiso(
        "predict", "adapter", "-", "--model", tiny_model, "--json", stdin="\n".join(texts) + "\n"
    )
    assert piped.json["predictions"] == [
        {key: one[key] for key in ("input", "tuned")} for one in said
    ]
    from_file = hiso("predict", "run", reviews, "--json").json["predictions"]
    with reviews.open() as file:
        assert [one["input"] for one in from_file] == list(csv.DictReader(file))
    shown = hiso("predict", "run", *asked, "--base")
    assert shown.out.count("tuned") == shown.out.count("base") == 2
    assert texts[0] in shown.out
    assert hiso("predict", "run", "--json").json["predictions"] == []  # nothing on standard input


def test_a_terminal_asks_for_texts(folder, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(100)
    process = Hiso(folder).start("predict", "run", "--base", terminal=terminal.name)
    terminal.read_until(process, "text> ")
    terminal.type("A lovely film.\n")
    terminal.read_until(process, r"base .*\d[^>]*text> ")
    terminal.type("\n")
    terminal.read_until(process, NOWHERE)
    process.join()
    text = terminal.plain()
    assert process.exitcode == 0, text
    assert text.count("tuned") == text.count("base ") == 1
    assert "pos 0." in text


def test_a_file_shows_progress_on_a_terminal(folder, reviews, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(100)
    many = folder / "many.csv"
    many.write_text(reviews.read_text() + "".join(f"film {i} was good,1,a\n" for i in range(2000)))
    process = Hiso(folder).start("predict", "run", many, terminal=terminal.name)
    terminal.read_until(process, NOWHERE)
    process.join()
    assert process.exitcode == 0, terminal.plain()
    assert "predicting" in terminal.plain()
    assert "/2080" in terminal.plain()


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        ("export run", 2, "give one of them"),
        ("export run --model out --adapter out2", 2, "give one of them"),
        ("export nowhere --model out", 6, "there is no ledger"),
        ("export adapter --adapter out", 6, "there is no ledger"),
        ("export run --adapter out --position 7", 6, "the log has positions 0..6, not 7"),
        ("export run --adapter adapter", 3, "exists and is not empty"),
        ("apply adapter --out out", 5, "does not name its base model"),
        ("apply other --model other --out out", 5, "neither a run nor an adapter"),
        ("apply adapter --model ./missing --out out", 5, "missing"),
        ("apply adapter --model other --out out", 6, "its weights differ"),
        ("apply broken --model other --out out", 6, "cannot be used"),
        ("diff run ./nowhere", 5, "no run and no adapter"),
        ("predict run --text a missing.csv", 2, "not both"),
        ("predict run missing.csv", 5, "missing.csv"),
        ("predict run no-text.csv", 5, "row 1 has no text"),
    ],
)
def test_errors_have_their_exit_codes(folder, command, code, words):
    if not (folder / "other").exists():
        save_model(folder / "other", "llama", seed=5)
        shutil.copytree(folder / "adapter", folder / "broken")
        raw = (folder / "broken" / "hiso_adapter.safetensors").read_bytes()
        spoiled = raw[:-4] + bytes([raw[-4] ^ 1]) + raw[-3:]
        (folder / "broken" / "hiso_adapter.safetensors").write_bytes(spoiled)
        (folder / "no-text.csv").write_text("word\nfine\n")
    before = {path.name for path in folder.iterdir()}
    done = Hiso(folder)(*command.split())
    assert done.code == code, done.err
    assert words in " ".join(done.err.replace("│", " ").split())
    assert done.out == ""
    assert "Traceback" not in done.err
    assert {path.name for path in folder.iterdir()} == before
