"""Every Python and shell block of README and docs runs, page by page, as a reader would run it.

A comment before a block says what else is to be done with it: `<!-- file: NAME -->` saves it under
that name, `<!-- needs: WHAT -->` leaves it out, with WHAT from `NEEDS`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = {str(p.relative_to(ROOT)): p for p in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]}
NEEDS = {"network", "gpu", "several machines", "minutes", "files of yours"}
LANGUAGES = {"python", "bash", "toml", ""}
SMALLER = """
from hiso.workloads.text import models

load = models.load_model
models.load_model = lambda name: load({folder!r} if name == "smollm2" else name)
"""
"""Run before a page: a random model in place of the packaged one, which takes minutes."""


@dataclass
class Block:
    line: int
    language: str
    text: str
    file: str | None
    needs: str | None


def blocks(text: str) -> list[Block]:
    found, marks = [], {"file": None, "needs": None}
    for token in MarkdownIt().parse(text):
        if mark := re.fullmatch(r"<!-- (file|needs): (.+) -->\n?", token.content):
            marks[mark[1]] = mark[2]
        elif token.type == "fence":
            found.append(Block(token.map[0], token.info, token.content, **marks))
            marks = {"file": None, "needs": None}
        else:
            assert not any(marks.values()), f"{marks} stands before no block"
    return found


def script(page: list[Block]) -> str:
    """One Python script, whose lines have the numbers that they have on the page."""
    lines: list[str] = []
    for block in page:
        lines += [""] * (block.line - len(lines))
        if block.file is not None:
            lines.append(f"__import__('pathlib').Path({block.file!r}).write_text({block.text!r})")
        elif block.language == "bash":
            command = ["bash", "-eo", "pipefail", "-c", block.text]
            lines.append(f"__import__('subprocess').run({command!r}, check=True)")
        elif block.language == "python":
            lines += ["", *block.text.splitlines()]
    return "\n".join(lines) + "\n"


def runnable(page: Path) -> list[Block]:
    every = [block for block in blocks(page.read_text()) if block.needs is None]
    return [block for block in every if block.language in ("python", "bash") or block.file]


@pytest.mark.parametrize(
    "page", [pytest.param(p, id=name) for name, p in PAGES.items() if runnable(p)]
)
def test_a_page_runs(page, tmp_path, tiny_model):
    path = tmp_path / f"page_{page.stem}.py"
    path.write_text(script(runnable(page)))
    before = tmp_path / "before"
    before.mkdir()
    (before / "sitecustomize.py").write_text(SMALLER.format(folder=str(tiny_model)))
    source = os.pathsep.join([str(before), *filter(None, [os.environ.get("PYTHONPATH")])])
    more = {"PYTHONPATH": source}
    more |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    more |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, path],
        cwd=tmp_path,
        env=os.environ | more,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]


@pytest.mark.parametrize("name", PAGES)
def test_blocks_say_what_they_are(name):
    for block in blocks(PAGES[name].read_text()):
        where = f"{name}:{block.line + 1}"
        assert block.language in LANGUAGES, where
        assert block.needs is None or block.needs in NEEDS, where
        if block.language == "toml":
            tomllib.loads(block.text)
        if block.language == "python":
            compile(block.text, where, "exec")


PAGE = """
<!-- file: words.py -->
```python
WORD = "there"
```
Then

```bash
test -f words.py && echo here > out
false | true || echo not this far > far
```
<!-- needs: minutes -->
```bash
exit 1
```
```python
from words import WORD
number = len(WORD)
```

```python
assert open("out").read() == "here\\n"
assert number == 5
raise SystemExit(f"{WORD} at line {__import__('sys')._getframe().f_lineno}")
```
"""


def test_how_a_page_is_run(tmp_path):
    """Marks are heeded, blocks share folder and names, and line numbers are those of the page."""
    path = tmp_path / "page.py"
    path.write_text(script([block for block in blocks(PAGE) if block.needs is None]))
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    line = PAGE.splitlines().index(next(x for x in PAGE.splitlines() if x.startswith("raise"))) + 1
    assert (done.returncode, done.stderr) == (1, f"there at line {line}\n")
    assert (tmp_path / "far").exists()
    path.write_text(script(blocks(PAGE)))  # the one that fails too
    done = subprocess.run(
        [sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "returned non-zero exit status 1" in done.stderr
    with pytest.raises(AssertionError, match="before no block"):
        blocks("<!-- needs: minutes -->\nText.\n")
