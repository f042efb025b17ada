"""One flag per setting, generated from the settings class."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from rich.markup import escape

from hiso.errors import SettingsError
from hiso.ring.ledger.runfile import RENAMED
from hiso.run.settings import Settings, read_toml

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, nothing else.")]
SettingsFile = Annotated[
    Path | None, typer.Argument(help="TOML file of settings.", show_default=False)
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--change",
        metavar="KEY=VALUE",
        help="Change a setting of an existing run; repeatable.",
    ),
]
Rollback = Annotated[
    int | None, typer.Option(min=0, help="First roll back to this position of the log.")
]
TextColumn = Annotated[
    str | None,
    typer.Option(help="Column of the texts in --data, for your own task.", show_default=False),
]
LabelColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of the labels; prompt and label words are made from it.", show_default=False
    ),
]
TABLES = frozenset({"task_definition"})
"""Settings that are tables of a TOML file and have no flag."""
_FLAGS = [name for name in Settings.model_fields if name not in TABLES]


def with_columns(
    given: Mapping[str, Any], text_column: str | None, label_column: str | None
) -> dict[str, Any]:
    """The settings, with the columns of the user's own task from two flags."""
    flags = {"text_column": text_column, "label_column": label_column}
    named = {key: value for key, value in flags.items() if value is not None}
    table = given.get("task_definition", {})
    if not named or not isinstance(table, dict):
        return dict(given)
    return {**given, "task_definition": {**table, **named}}


def merge_file(file: Path | None, flags: Mapping[str, Any]) -> tuple[dict[str, Any], Path | None]:
    """The settings of a TOML file, overridden by flags; and the run's folder if the file names one.

    Raises:
        SettingsError: The file cannot be read, or is not TOML.
    """
    given = {**(read_toml(file) if file else {}), **flags}
    out = given.pop("out", None)
    return given, Path(out) if out else None


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Replaces the parameter `settings` of a command by a flag for every setting.

    The command gets a dict of the given flags. Their values are checked later, together with the
    settings of a file.
    """

    def wrapped(**arguments: Any) -> None:
        given = {
            name: arguments.pop(name)
            for name in (*_FLAGS, *RENAMED)
            if arguments.get(name) is not None or arguments.pop(name, None)
        }
        command(settings=given, **arguments)

    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.name != "settings"
    ]
    flags = [_flag(name) for name in _FLAGS] + [_renamed_flag(name) for name in RENAMED]
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in [*own, *flags]]
    wrapped.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    wrapped.__name__, wrapped.__doc__ = command.__name__, command.__doc__
    return wrapped


def _flag(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    kind, choices = _kind(field.annotation)
    default = "" if field.default is None else f" [default: {field.default}]"
    listed = f" [{'|'.join(choices)}]" if choices else ""
    flag = "--" + name.replace("_", "-")
    if kind is bool:
        flag = f"{flag}/--no-{name.replace('_', '-')}"
    option = typer.Option(
        flag,
        help=escape(f"{field.description}{listed}{default}"),
        show_default=False,
        rich_help_panel="Settings",
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


def _renamed_flag(name: str) -> inspect.Parameter:
    """A flag of hiso 0.1; the check of the settings refuses it and names the new flag."""
    option = typer.Option("--" + name.replace("_", "-"), hidden=True)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[str | None, option],
    )


def _kind(annotation: Any) -> tuple[type, tuple[str, ...]]:
    """The type that the command line parses, and the allowed words."""
    if get_origin(annotation) is Literal:
        return str, get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if inner := [_kind(a) for a in get_args(annotation) if a is not type(None)]:
        return inner[0] if len(inner) == 1 else (str, ())
    return annotation, ()


def parse_change(text: str) -> tuple[str, Any]:
    """`lr=1e-4` as ("lr", 1e-4); values are JSON, or else plain text.

    Raises:
        SettingsError: There is no equals sign.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise SettingsError(f"--change {text}: write it as KEY=VALUE")
    try:
        return key.strip().replace("-", "_"), json.loads(value)
    except json.JSONDecodeError:
        return key.strip().replace("-", "_"), value
