"""Mutation testing: breaks the code in small ways and asks whether the tests notice.

    python tests/mutants.py --number 300 --seed 0

cosmic-ray makes the mutants: `+` becomes `-`, 1 becomes 2, `<` becomes `<=`, and so on. Some are
drawn at random, and each is tried with the tests that run its line: those first that killed others
in the same file, then the quickest, up to `--enough` seconds. One that survives shows what no test
looks at, or changes nothing that matters (an equivalent mutant): read each and judge.

Work goes on in a copy of the checkout, in the folder `--out`. Called again, it goes on where it
stopped, with the same copy; and with more seconds, it tries survivors anew for which tests were
left out. For changed code, take another folder.

A line that importing runs belongs to all tests that run some other line of its file; a line of a
compiled function, which cannot be traced, to the tests of the file that calls it.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from bisect import bisect
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from cosmic_ray.commands.init import _all_work_items
from cosmic_ray.mutating import mutate_and_test, mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_item import MutationSpec, TestOutcome
from coverage import CoverageData

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["src/hiso/core", "src/hiso/ring"]
TESTS = ["core", "ring", "engines", "run/test_resume.py", "run/test_choose_mu.py"]
CHOSEN = ["-m", "not flower and not model", "-k", "not follow_the_derivatives"]
COMPILED = {"src/hiso/core/kernels/numba_noise.py": "src/hiso/core/kernels/numba_backend.py"}
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
PATIENCE = 60
"""Seconds for a single test, and for what a mutant's tests take beyond their usual time."""


@dataclass
class Result:
    """What became of a mutant: killed, timeout, survived, or untested if no test runs its line.

    Attributes:
        place: File, line, and column.
        operator: cosmic-ray's operator, and which of its occurrences in the file.
        change: Lines of a diff.
        outcome: What became of it.
        by: The test that killed it.
        tests: Number of tests that it was tried with.
        left_out: Number of other tests that run its line.
        seconds: How long it took.
    """

    place: str
    operator: str
    change: list[str]
    outcome: str
    by: str
    tests: int
    left_out: int
    seconds: float


class Cover:
    """Which tests run a line, and how long each takes."""

    def __init__(self, tree: Path, database: Path, times: Path) -> None:
        self._tree = tree
        self.seconds: dict[str, float] = {}
        for case in ET.parse(times).iter("testcase"):
            test = f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name']}"
            if not len(case):  # neither failed nor skipped
                self.seconds[test] = float(case.attrib["time"])
        data = CoverageData(str(database))
        data.read()
        self._lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for path in data.measured_files():
            lines = self._lines[str(Path(path).relative_to(tree))]
            for line, contexts in data.contexts_by_lineno(path).items():
                names = {context.rpartition("|")[0] for context in contexts}
                lines[line] = names & self.seconds.keys()

    def tests(self, file: str, line: int) -> set[str]:
        """The tests that run a line."""
        first, last, called = _statements((self._tree / file).read_text()).get(
            line, (line, line, False)
        )
        if file in COMPILED or not called:
            lines = self._lines[COMPILED.get(file, file)]
            return set().union(*(lines[n] for n in self._bodies(COMPILED.get(file, file))))
        return set().union(*(self._lines[file][n] for n in range(first, last + 1)))

    def _bodies(self, file: str) -> list[int]:
        statements = _statements((self._tree / file).read_text())
        return [line for line, (_, _, called) in statements.items() if called]


def _statements(source: str) -> dict[int, tuple[int, int, bool]]:
    """For each line: the first and last of its statement, and whether only a call runs it."""
    found: dict[int, tuple[int, int, bool]] = {}

    def visit(node: ast.AST, called: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt | ast.ExceptHandler):
                inner = getattr(child, "body", [])
                last = max(child.lineno, inner[0].lineno - 1 if inner else child.end_lineno or 0)
                for line in range(child.lineno, last + 1):
                    found[line] = child.lineno, last, called
            visit(child, called or isinstance(child, ast.FunctionDef))

    visit(ast.parse(source), False)
    return found


def _annotated(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where type annotations begin and end: they never run."""
    nodes: list[Any] = []
    for node in ast.walk(ast.parse(source)):
        nodes += [getattr(node, name, None) for name in ("annotation", "returns")]
    return [
        ((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset)) for n in nodes if n is not None
    ]


def draw(tree: Path, number: int, seed: int) -> Iterator[MutationSpec]:
    """`number` of all mutants that are valid Python and lie outside of annotations."""
    paths = sorted(path for package in PACKAGES for path in (tree / package).rglob("*.py"))
    sources = {path: path.read_text() for path in paths}
    annotated = {path: _annotated(source) for path, source in sources.items()}
    specs = [
        spec
        for item in _all_work_items(paths, {})
        for spec in item.mutations
        if not any(start <= spec.start_pos < end for start, end in annotated[spec.module_path])
    ]
    specs.sort(key=lambda s: (s.module_path, s.start_pos, s.operator_name, s.occurrence))
    random.Random(seed).shuffle(specs)
    for spec in specs:
        operator = get_operator(spec.operator_name)()
        try:
            compile(mutate_code(sources[spec.module_path], operator, spec.occurrence), "", "exec")
        except SyntaxError:
            continue
        yield spec
        number -= 1
        if not number:
            return


def _name(tree: Path, spec: MutationSpec) -> tuple[str, str]:
    """A mutant's place and operator."""
    place = ":".join(map(str, (spec.module_path.relative_to(tree), *spec.start_pos)))
    return place, f"{spec.operator_name.removeprefix('core/')}#{spec.occurrence}"


def attempt(tree: Path, spec: MutationSpec, tests: list[str], limit: float) -> Result:
    """Applies a mutant to the copy, runs tests until one fails, and takes it back."""
    began = time.monotonic()
    command = shlex.join([*PYTEST, "-x", f"--timeout={PATIENCE}", *tests]) if tests else "true"
    done = mutate_and_test([spec], command, limit)
    output = done.output or ""
    if done.test_outcome not in (TestOutcome.KILLED, TestOutcome.SURVIVED):
        raise RuntimeError(f"{spec} could not be tried: {output}")
    outcome, by = "survived" if tests else "untested", ""
    if done.test_outcome is TestOutcome.KILLED:
        outcome = "timeout" if output == "timeout" or "Failed: Timeout" in output else "killed"
        failed = (x.split()[1] for x in output.splitlines() if x.startswith(("FAILED", "ERROR")))
        by = next(failed, output[-300:])
    change = [x for x in (done.diff or "").splitlines()[3:] if x.startswith(("-", "+"))]
    seconds = round(time.monotonic() - began, 1)
    return Result(*_name(tree, spec), change, outcome, by, len(tests), 0, seconds)


class Session:
    """The results so far, in a file."""

    def __init__(self, tree: Path, cover: Cover, file: Path) -> None:
        self._tree, self._cover, self._file = tree, cover, file
        rows = json.loads(file.read_text()) if file.exists() else []
        self.results = {(row["place"], row["operator"]): Result(**row) for row in rows}

    def try_out(self, spec: MutationSpec, enough: float) -> None:
        """Tries a mutant, unless it was tried with as many tests before."""
        name = _name(self._tree, spec)
        file, line, _ = name[0].split(":")
        found, seconds = self._cover.tests(file, int(line)), self._cover.seconds
        kills = Counter(r.by for r in self.results.values() if r.place.startswith(f"{file}:"))
        tests = sorted(found, key=lambda test: (-kills[test], seconds[test], test))
        usual = list(accumulate(seconds[test] for test in tests))
        tests = tests[: max(1, bisect(usual, enough))]
        before = self.results.get(name)
        if before and (before.outcome != "survived" or before.tests >= len(tests)):
            return
        limit = PATIENCE + 2 * sum(seconds[test] for test in tests)
        result = attempt(self._tree, spec, tests, limit)
        result.left_out = len(found) - len(tests)
        self.results[name] = result
        rows = [asdict(result) for result in self.results.values()]
        self._file.write_text(json.dumps(rows, indent=1))
        print(result.outcome, *name, f"{result.seconds} s", flush=True)

    def report(self) -> str:
        """Every survivor with what was changed, then the counts."""
        lines: list[str] = []
        for r in sorted(self.results.values(), key=lambda r: r.place):
            if r.outcome in ("survived", "untested"):
                tests = f"{r.tests} tests, {r.left_out} left out"
                lines += [f"{r.place}  {r.operator}  {r.outcome}, {tests}"]
                lines += [f"    {line}" for line in r.change]
        counts = Counter(result.outcome for result in self.results.values()).most_common()
        text = ", ".join(f"{count} {outcome}" for outcome, count in counts)
        return "\n".join([*lines, f"{len(self.results)} mutants: {text}"])


def prepare(out: Path) -> Cover:
    """Copies the checkout and runs all tests once, to see which lines each of them runs."""
    tree, database, times = out / "tree", out / "coverage", out / "times.xml"
    os.environ |= {
        "PYTHONPATH": str(tree / "src"),
        "NUMBA_CACHE_DIR": str(out / "numba"),
        "XDG_CACHE_HOME": str(out / "cache"),
        "COVERAGE_FILE": str(database),
        "OMP_NUM_THREADS": "1",
    }
    if not tree.exists():
        names = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True)
        for name in names.rstrip("\0").split("\0"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    os.chdir(tree)
    if not times.exists():
        partial = times.with_suffix(".partial")
        covered = [f"--cov={package}" for package in PACKAGES]
        report = ["--cov-context=test", "--cov-report=", f"--junitxml={partial}"]
        tests = [f"tests/{name}" for name in TESTS]
        subprocess.run([*PYTEST, *CHOSEN, *covered, *report, *tests], check=False)
        partial.rename(times)
    return Cover(tree, database, times)


def main() -> None:
    """Draws, tries, reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--number", type=int, default=300, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--enough", type=float, default=60, help="seconds of tests for a mutant")
    parser.add_argument("--out", type=Path, default=Path("runs/mutants"), help="folder for it all")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    cover = prepare(out)
    session = Session(out / "tree", cover, out / f"results-{arguments.seed}.json")
    for spec in draw(out / "tree", arguments.number, arguments.seed):
        session.try_out(spec, arguments.enough)
    print(session.report())


if __name__ == "__main__":
    main()
