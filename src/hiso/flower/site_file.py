"""The site's own settings: `site.toml` in a worker's folder."""

from __future__ import annotations

import json
import logging
import textwrap
from pathlib import Path

from hiso.errors import SettingsError
from hiso.ring.site import Site
from hiso.ring.site_settings import SiteSettings, Value
from hiso.run.folder import storing, write_text
from hiso.run.settings import Settings, parse, read_toml

SITE = "site.toml"
_HEAD = (
    "What this site decides, for all runs of this folder. Every setting is shown with its default "
    "value; to change it, remove the # before its name. The worker reads this file when it starts."
)
log = logging.getLogger(__name__)


def open_site(folder: Path, settings: Settings) -> Site:
    """The site of a worker's folder.

    If there is no `site.toml`, one is written that lists all its settings as comments.

    Raises:
        SettingsError: The file has an unknown key or a wrong value, or insists on a setting of the
            run that has no fixed value.
        ProtocolError: The file of answers or the key is damaged.
        StorageError: A file cannot be read or written.
    """
    path = folder / SITE
    if not path.exists():
        with storing(path):
            write_text(path, _template())
    chosen, expected = read_site(folder, settings)
    changed = chosen.model_dump(exclude_defaults=True)
    told = ", ".join(f"{name} = {value}" for name, value in changed.items())
    log.info("%s: %s", path, told or "all defaults")
    site = Site(folder, chosen, expected)
    log.info("%d scalars sent so far, over all runs", site.sent)
    return site


def read_site(folder: Path, settings: Settings) -> tuple[SiteSettings, dict[str, Value]]:
    """What `site.toml` in a folder decides, the defaults without such a file; and the values that
    every plan must have. Nothing is written.

    Raises:
        SettingsError: As `open_site`.
    """
    path = folder / SITE
    chosen = parse(SiteSettings, read_toml(path) if path.exists() else {}, str(path))
    return chosen, _expected(settings, chosen.must_match, path)


def _template() -> str:
    parts = [_comment(_HEAD)]
    for name, field in SiteSettings.model_fields.items():
        value = field.get_default()
        shown = list(value) if isinstance(value, tuple) else value
        text = str(shown) if isinstance(shown, float) else json.dumps(shown)
        parts.append(f"{_comment(field.description or '')}# {name} = {text}\n")
    return "\n".join(parts)


def _comment(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="# ", subsequent_indent="# ") + "\n"


def _expected(settings: Settings, names: tuple[str, ...], path: Path) -> dict[str, Value]:
    """The values of the site's own settings that every plan must have."""
    method = settings.make_method()
    known: dict[str, Value] = {
        **method.hyper,
        "local_steps": settings.local_steps,
        "directions": settings.directions,
        "mu": settings.mu,
        "scheme": settings.scheme or "forward",
    }
    examples = settings.sample * settings.batch_size
    followed = method.follow(method.hyper, method.derived, settings.directions, examples)
    moving = {name for name, value in followed.items() if value != method.hyper[name]}
    moving |= {"lr"} if method.auto else set()
    moving |= {"mu", "scheme"} if settings.mu == "auto" else set()
    moving |= {"lr", "mu"} if settings.normalise else set()
    problems = [
        f"{name} is not a setting that a plan has; known: {', '.join(known)}"
        for name in names
        if name not in known
    ]
    problems += [
        f"{name} has no fixed value in the site's own settings: give a number there, or leave "
        f"{name} out here"
        for name in names
        if name in moving
    ]
    if problems:
        raise SettingsError(f"{path}: must_match: " + "; ".join(problems))
    return {name: known[name] for name in names}
