"""Imports the user's own objects by their import path, such as `package.module:name`."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

from hiso.core.method.base import Method
from hiso.core.method.registry import register
from hiso.errors import LoadError


def is_path(name: str) -> bool:
    """Whether a name is an import path rather than a name built into hiso."""
    return ":" in name


def import_object(path: str) -> Any:
    """The object named by `package.module:name`. The module is imported, so its code runs.

    Raises:
        LoadError: There is no such module or name, or the module fails; the message says what to
            do.
    """
    module, _, name = path.partition(":")
    if not module or not name.isidentifier():
        raise LoadError(f"{path!r} is not an import path: write it as package.module:name")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise LoadError(
            f"{path} cannot be imported: {error}. Put the folder that holds the module on "
            f"PYTHONPATH, or install its package for {sys.executable}"
        ) from error
    except Exception as error:  # the user's module may raise anything
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
    """The method named by an import path: an object, or a class, used with its default values.

    Its class is registered under its name, so that a run's identity can be read.

    Raises:
        LoadError: It cannot be imported, or is not a method with a name and default values.
        SettingsError: Its name belongs to another method.
    """
    found: object = import_object(path)
    made = _at_defaults(found, path) if isinstance(found, type) else found
    if not isinstance(made, Method):
        raise LoadError(
            f"{path} is not a method: name a subclass of hiso.Method, or an object of such a class"
        )
    if not isinstance(getattr(made, "name", None), str):
        raise LoadError(f'{path} has no name: add `name: ClassVar[str] = "…"` to the class')
    register(type(made))
    return made


def _at_defaults(kind: type[object], path: str) -> object:
    """A method object with default values, if `kind` is a method class; otherwise `kind`
    itself.
    """
    if not issubclass(kind, Method):
        return kind
    try:
        return kind()
    except TypeError as error:
        raise LoadError(
            f"{path} cannot be made: {error}. Give every hyper-parameter a default, or name an "
            "object"
        ) from error
