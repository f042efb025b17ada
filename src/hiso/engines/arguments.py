"""Checks the arguments of `hiso.Federation` and reports all problems at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic import ValidationError as Invalid
from torch import nn

from hiso.core.identity import Dtype, Identity
from hiso.core.kernels import Backend
from hiso.core.measure.backward import Probing, check_backward
from hiso.core.measure.probe import Scheme
from hiso.core.method.base import Method
from hiso.core.method.registry import ZoSgd
from hiso.core.noise import Noise
from hiso.core.replica.adopt import find_trainable
from hiso.core.replica.replica import Memory
from hiso.data.shards import shard_problem
from hiso.errors import SettingsError
from hiso.ring.aggregate import Weighting
from hiso.ring.round_settings import RoundSettings


def _trainable(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ValueError(f"{_named(model)} is not a torch.nn.Module")
    try:
        find_trainable(model)
    except SettingsError as error:
        raise ValueError(str(error)) from error
    return model


def _object(method: Any) -> Method:
    if not isinstance(method, Method):
        raise ValueError(f"{_named(method)} is not a method: give an object, such as HiSo(lr=1e-3)")
    return method


def _all_shards(shards: Any) -> Sequence[Any]:
    if not isinstance(shards, list | tuple):
        raise ValueError(
            f"{_named(shards)} is not a list: give a list with the data set of each client"
        )
    problems = [
        f"client {client} {problem}"
        for client, shard in enumerate(shards)
        if (problem := shard_problem(shard)) is not None
    ]
    if problems or not shards:
        raise ValueError("; ".join(problems) or "there is no client")
    return shards


def _file(path: Any) -> Path | None:
    if not isinstance(path, str | Path | None):
        raise ValueError(f"{_named(path)} is not the path of a file")
    if path is not None and Path(path).is_dir():
        raise ValueError(f"{path} is a folder: name a file in it")
    return None if path is None else Path(path)


Positive = Annotated[int, Field(ge=1)]


class Arguments(BaseModel):
    """The arguments of `hiso.Federation`, each checked separately."""

    model_config = ConfigDict(frozen=True, strict=True, arbitrary_types_allowed=True)

    model: Annotated[Any, AfterValidator(_trainable)]
    method: Annotated[Any, AfterValidator(_object)]
    loss: Callable[[Any, Any], Any]
    shards: Annotated[Any, AfterValidator(_all_shards)]
    batch_size: Positive
    sample: Positive
    directions: Positive
    mu: float
    seed: int
    ledger: Annotated[Any, AfterValidator(_file)]
    local_steps: Positive
    scheme: Scheme
    per_client: bool
    weighting: Weighting
    normalise: float
    divergence_factor: float | None
    noise: Noise
    dtype: Dtype
    memory: Memory
    backend: Backend
    collate: Callable[[list[Any]], Any]
    probe: Probing | list[Probing] | tuple[Probing, ...]
    loss_name: str | None
    loss_version: int | str

    @property
    def rounds(self) -> RoundSettings:
        """The round settings for the server."""
        return _rounds(dict(self))

    @property
    def identity(self) -> Identity:
        """The run's identity, still without the model."""
        return _identity(dict(self))

    @property
    def backward_clients(self) -> list[int]:
        """The clients that use backward passes."""
        return _backward_clients(dict(self))

    @property
    def stored(self) -> dict[str, Any]:
        """The arguments that a ledger stores besides the identity."""
        return {name: getattr(self, name) for name in _STORED}


_FOR_ROUNDS = (
    "directions",
    "mu",
    "scheme",
    "per_client",
    "weighting",
    "divergence_factor",
    "normalise",
)
_FOR_IDENTITY = ("method", "seed", "noise", "dtype", "batch_size")
_STORED = ("sample", "directions", "mu", "local_steps", "scheme", "weighting", "normalise")
_HARMLESS: dict[str, Any] = {
    "method": ZoSgd(),
    "loss": lambda model, batch: 0.0,  # noqa: ARG005
    "batch_size": 1,
    "sample": 1,
    "directions": 1,
    "mu": 1.0,
    "seed": 0,
    "local_steps": 1,
    "scheme": "forward",
    "per_client": False,
    "weighting": "plain",
    "normalise": 0.0,
    "divergence_factor": None,
    "noise": "binomial",
    "dtype": "float32",
    "memory": "full",
    "probe": "forward",
    "loss_name": None,
    "loss_version": 1,
}
"""Valid values that replace invalid arguments, so that the others can be checked together."""


def check_arguments(values: Mapping[str, Any]) -> Arguments:
    """Checks the arguments of `hiso.Federation`.

    Raises:
        SettingsError: Lists every problem with single arguments and with their combination.
    """
    try:
        arguments, bad, problems = Arguments.model_validate(dict(values)), set[str](), list[str]()
    except Invalid as error:
        arguments, bad = None, {str(one["loc"][0]) for one in error.errors()}
        problems = list({one["loc"][0]: _text(one) for one in error.errors()}.values())
    rest = {**values, **{name: value for name, value in _HARMLESS.items() if name in bad}}
    if "shards" in bad:
        given = values["shards"]
        count = len(given) if isinstance(given, list | tuple) else 0
        rest["shards"] = [[0]] * (count or rest["sample"])
    for make in (_rounds, _identity, _backward_clients):
        try:
            make(rest)
        except SettingsError as error:
            problems.append(str(error))
    if arguments is None or problems:
        raise SettingsError("\n  ".join(["a federation cannot be made of this:", *problems]))
    return arguments


def _rounds(values: Mapping[str, Any]) -> RoundSettings:
    """The round settings for the server. Hyper-parameters of the log stay unchanged.

    Raises:
        SettingsError: The values do not give valid round settings.
    """
    return RoundSettings(
        clients=len(values["shards"]),
        sample=values["sample"],
        steps=values["local_steps"],
        hyper={"lr": values["method"].lr} if values["normalise"] else {},
        **{name: values[name] for name in _FOR_ROUNDS},
    )


def _identity(values: Mapping[str, Any]) -> Identity:
    """The run's identity, without the model.

    Raises:
        SettingsError: A value is out of range.
    """
    loss, shards = values["loss"], values["shards"]
    name = values["loss_name"] or getattr(loss, "__qualname__", type(loss).__qualname__)
    return Identity(
        clients=len(shards),
        per_client=values["per_client"],
        data={"examples": [len(shard) for shard in shards]},
        loss={"name": name, "version": values["loss_version"]},
        **{name: values[name] for name in _FOR_IDENTITY},
    )


def _backward_clients(values: Mapping[str, Any]) -> list[int]:
    """The clients that use backward passes.


    Raises:
        SettingsError: Backward passes are not possible, or `probe` does not have one entry per
            client.
    """
    probe, count = values["probe"], len(values["shards"])
    each = [probe] * count if isinstance(probe, str) else list(probe)
    if len(each) != count:
        raise SettingsError(f"probe has {len(each)} words: give one, or one for each shard")
    found = [client for client, word in enumerate(each) if word == "backward"]
    if found:
        check_backward(values["method"], values["memory"])
    return found


def _text(problem: Any) -> str:
    """One pydantic error as one line."""
    name = problem["loc"][0]
    if problem["type"] == "value_error":
        return f"{name}: {problem['msg'].removeprefix('Value error, ')}"
    return f"{name} = {_named(problem['input'])}: {problem['msg']}"


def _named(value: Any) -> str:
    """A short description of a value; for an object, its type."""
    short = isinstance(value, int | float | str | type | None)
    return repr(value) if short else f"a {type(value).__name__}"
