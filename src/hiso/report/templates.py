"""Fills the templates in `assets`."""

from __future__ import annotations

from importlib.metadata import version
from importlib.resources import files
from typing import Any

from hiso.report.parts import Table
from hiso.run.formatting import figure


def asset(name: str) -> str:
    """The text of a file in `assets`."""
    return (files("hiso.report") / "assets" / name).read_text()


def render(template: str, **values: Any) -> str:
    """A template, with these values, hiso's version and the pages' style; values are escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("hiso.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    environment.filters["aligned"] = _aligned
    found = environment.get_template(template)
    return found.render(version=version("hiso"), css=asset("page.css"), **values)


def _aligned(table: Table) -> list[bool]:
    """For each column, whether it holds figures and so is right-aligned."""
    columns = zip(*table.rows, strict=True) if table.rows else [()] * len(table.header)
    return [all(not isinstance(c, str) or c[:1].isdigit() for c in column) for column in columns]
