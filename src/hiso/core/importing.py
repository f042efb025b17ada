"""Objects of the user's own by their import path, as `package.module:name`."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

from hiso.core.method.base import Method
from hiso.core.method.registry import register
from hiso.errors import LoadError


def is_path(name: str) -> bool:
    """Whether a name is an import path, and not one that hiso knows by itself."""
    return ":" in name


def import_object(path: str) -> Any:
    """What `package.module:name` names. The module is imported, so its code runs.

    Raises:
        LoadError: There is no such module or name, or the module fails; says what to do.
    """
    module, _, name = path.partition(":")
    if not module or not name.isidentifier():
        raise LoadError(f"{path!r} is no import path: write it as package.module:name")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise LoadError(
            f"{path} cannot be imported: {error}. Put the folder that holds the module on "
            f"PYTHONPATH, or install its package for {sys.executable}"
        ) from error
    except Exception as error:  # whatever the user's module raises
        raise LoadError(
            f"{path} cannot be imported: {module} raises {type(error).__name__}: {error}. Correct "
            f"it until `python -c 'import {module}'` works"
        ) from error
    if not hasattr(found, name):
        near = difflib.get_close_matches(name, dir(found), 1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise LoadError(f"{path}: {module} ({found.__file__}) has no {name}{hint}")
    return getattr(found, name)


def import_method(path: str) -> Method:
    """The method that an import path names: a class, at its defaults, or an object.

    Its class is registered by its name, so that a run's identity can be read.

    Raises:
        LoadError: It cannot be imported, or is no method with a name and defaults.
        SettingsError: Its name belongs to another method.
    """
    found: object = import_object(path)
    made = _at_defaults(found, path) if isinstance(found, type) else found
    if not isinstance(made, Method):
        raise LoadError(
            f"{path} is no method: name a subclass of hiso.Method, or an object of such a class"
        )
    if not isinstance(getattr(made, "name", None), str):
        raise LoadError(f'{path} has no name: add `name: ClassVar[str] = "…"` to the class')
    register(type(made))
    return made


def _at_defaults(kind: type[object], path: str) -> object:
    """A method of a class, at its defaults; of another class, the class."""
    if not issubclass(kind, Method):
        return kind
    try:
        return kind()
    except TypeError as error:
        raise LoadError(
            f"{path} cannot be made: {error}. Give every hyper-parameter a default, or name an "
            "object"
        ) from error
