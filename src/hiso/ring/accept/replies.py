"""Checks a reply of any content, and describes its problems in words."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard, cast

import numpy as np

from hiso.core.method.base import Method
from hiso.core.record import MAX_STREAM
from hiso.ring.messages import Plan, Reply
from hiso.ring.wire import hash_question

LARGEST_LOSS = float(np.finfo(np.float32).max)
MAX_DIGEST = 2**64 - 1
MAX_EXAMPLES = 2**53


def is_whole(value: object, low: int, high: int) -> TypeGuard[int]:
    """Whether `value` is a plain int (not a bool or a NumPy number) in [`low`, `high`]."""
    return type(value) is int and low <= value <= high


def reply_problems(
    reply: object, plans: Mapping[int, Plan], answered: Mapping[int, Reply], method: Method
) -> Iterator[str]:
    """All reasons why a reply is not valid in the open round.

    Args:
        reply: The received object; its fields may hold anything.
        plans: The open round's plan for each sampled client, at least one.
        answered: The valid replies so far.
        method: The run's method.
    """
    if not isinstance(reply, Reply):
        yield f"a reply is expected, not {type(reply).__name__}"
        return
    plan = next(iter(plans.values()))
    # Compare only values of the right type: an array, for example, has no truth value.
    if not (isinstance(reply.run, str) and reply.run == plan.run):
        yield f"run {_short(reply.run)} is not this run, {plan.run}"
    same_round = is_whole(reply.round, plan.round, plan.round)
    if not same_round:
        yield f"round {_short(reply.round)} is not the open one, {plan.round}"
    if not is_whole(reply.client, 0, MAX_STREAM) or reply.client not in plans:
        yield f"client {_short(reply.client)} was not asked"
    elif reply.client in answered:
        yield f"client {reply.client} has answered already"
    elif same_round:
        asked = hash_question(plans[reply.client])
        if not (isinstance(reply.asked, bytes) and reply.asked == asked):
            yield (
                f"asked {_hex(reply.asked)} is not the question that is open, {_hex(asked)}: the "
                "reply answers a plan with another mu, scheme, number of directions, hyper-"
                "parameter, or log"
            )
    if not is_whole(reply.digest, 0, MAX_DIGEST):
        yield f"digest {_short(reply.digest)} is not an unsigned 64-bit integer"
    shape = (plan.steps, plan.directions)
    yield from _array_problems("scalars", reply.scalars, shape)
    if method.measures_curvature:
        yield from _array_problems("curvature", reply.curvature, shape)
    elif reply.curvature is not None:
        yield "curvature was sent, but the method has no use for it"
    yield from _fact_problems(reply.facts, method.facts)
    told = isinstance(reply.loss, float) and abs(reply.loss) <= LARGEST_LOSS
    if not told and reply.loss is not None:
        yield f"loss {_short(reply.loss)} is not a finite number in the range of float32"
    if not is_whole(reply.examples, 1, MAX_EXAMPLES):
        yield f"examples {_short(reply.examples)} is not an integer in [1, {MAX_EXAMPLES}]"


def _array_problems(name: str, value: Any, shape: tuple[int, int]) -> Iterator[str]:
    if not isinstance(value, np.ndarray):
        yield f"{name} is {type(value).__name__}, not an array float32{list(shape)}"
    elif value.dtype != np.float32 or value.shape != shape:
        yield f"{name} is {value.dtype}{list(value.shape)}, not float32{list(shape)}"
    elif not np.isfinite(value).all():
        k, p = np.argwhere(~np.isfinite(value))[0].tolist()
        yield f"{name} is {value[k, p]} at local step {k}, direction {p}"


def _fact_problems(facts: object, names: Sequence[str]) -> Iterator[str]:
    if not isinstance(facts, Mapping):
        yield f"facts is {type(facts).__name__}, not a mapping"
        return
    told = cast(Mapping[Any, Any], facts)
    if set(told) != set(names):
        yield f"facts are named {_short(sorted(map(str, told)))}, not {sorted(names)}"
    for name in set(names) & set(told):
        value = told[name]
        if not (isinstance(value, float) and abs(value) <= LARGEST_LOSS):
            yield f"fact {name} = {_short(value)} is not a finite number in the range of float32"


def _short(value: object) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # an int of thousands of digits
        return f"of type {type(value).__name__}"


def _hex(value: Any) -> str:
    return value[:8].hex() if isinstance(value, bytes) else _short(value)
