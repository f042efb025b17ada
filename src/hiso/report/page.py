"""The page: one self-contained HTML file, which makes no network requests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hiso.errors import LoadError, SettingsError
from hiso.report.clients import clients_section
from hiso.report.curves import curves_section
from hiso.report.gather import read_runs
from hiso.report.groups import Group, group_runs, run_names
from hiso.report.log_figures import scalars_section, state_section
from hiso.report.parts import Figure, Section, line_style
from hiso.report.standin import state_history
from hiso.report.tables import costs_section, results_section, settings_section
from hiso.report.templates import asset, render
from hiso.run.folder import write_text
from hiso.run.observer import Observer, Silent


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    title: str,
    labels: Mapping[Path, str] | None = None,
    extra: Sequence[Section] = (),
    observer: Observer | None = None,
) -> dict[str, Any]:
    """Writes a page about runs; the same runs give the same bytes.

    Args:
        runs: The folders of the runs; a run may be unfinished, or have no ledger.
        out: The file to write; an existing file is replaced.
        title: The page's title.
        labels: For every run, the name of its group. By default, runs that differ only in the seed
            form a group, named after the settings that distinguish it from other groups.
        extra: Sections after the results.
        observer: Receives the progress.

    Returns:
        `report`, the file; `bytes`, its size; `groups`, the number of runs by name.

    Raises:
        LoadError: The extra `report` is not installed.
        SettingsError: No run is named, or one is named twice; or `out` cannot be written.
        ProtocolError: A folder holds no run, or a file in it is damaged.
    """
    check_installed()
    groups = group_runs(read_runs(runs), labels)
    sections = list(_sections(groups, extra, observer or Silent()))
    text = _render(title, groups, sections)
    try:
        write_text(out, text)
    except OSError as error:
        raise SettingsError(f"cannot write the report to {out}: {error}") from error
    counts = {group.label: len(group.runs) for group in groups}
    return {"report": str(out), "bytes": out.stat().st_size, "groups": counts}


def check_installed() -> None:
    """Checks that a report can be written.

    Raises:
        LoadError: The extra `report` is not installed.
    """
    missing = [name for name in ("jinja2", "plotly") if find_spec(name) is None]
    if missing:
        raise LoadError(f"a report needs {' and '.join(missing)}: pip install 'hiso[report]'")


def _sections(
    groups: Sequence[Group], extra: Sequence[Section], observer: Observer
) -> Iterator[Section]:
    named = run_names(groups)
    histories = {name: state_history(run, observer) for name, run in named.items()}
    learned = {name: history for name, history in histories.items() if history is not None}
    yield results_section(groups)
    yield from extra
    own = (
        curves_section(groups),
        costs_section(groups),
        scalars_section(groups, named),
        state_section(learned),
        clients_section(named),
        settings_section(groups, named),
    )
    yield from (section for section in own if section is not None)


def _render(title: str, groups: Sequence[Group], sections: Sequence[Section]) -> str:
    from plotly.offline import get_plotlyjs

    figures = [asdict(p) for s in sections for p in s.parts if isinstance(p, Figure)]
    return render(
        "page.html",
        title=title,
        groups=groups,
        styles=[line_style(index) for index in range(len(groups))],
        sections=sections,
        script=asset("page.js"),
        plotly=get_plotlyjs(),
        figures=json.dumps(figures, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )
