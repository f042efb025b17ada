"""The elementwise operations that a method may use, and the graph for generating kernels.

A method is written once, with `+ - * /` and the functions here. Applied to NumPy float32 arrays,
this code computes; applied to `Expr`, it builds a graph, from which each kernel backend prints its
own source. So one definition fixes the order of operations and every rounding: literals become
float32, and each operation is rounded separately.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Value = Any
"""A float32 array, a float32 scalar, or an `Expr`; methods treat all three alike."""


_USE_SELECT = "methods are elementwise: compare with > or <, and use select(condition, a, b)"


class _Node:
    """A value that is known only when a kernel runs, so Python's `if` cannot test it."""

    def __bool__(self) -> bool:
        raise TypeError(_USE_SELECT)

    def _compared(self, _other: object) -> bool:
        raise TypeError(_USE_SELECT)

    __eq__ = __ne__ = __ge__ = __le__ = _compared  # pyright: ignore[reportAssignmentType]
    __hash__ = object.__hash__
    __array_ufunc__ = None
    """Makes NumPy's numbers and functions defer to this class, which refuses them."""


@dataclass(frozen=True, eq=False)
class Condition(_Node):
    """`left` > `right`, or `left` < `right`; may only be passed to `select`."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, eq=False)
class Expr(_Node):
    """A number: `op` is "var", "const", "neg", "sqrt", "select", or one of + - * /."""

    op: str
    args: tuple[Any, ...]

    def __add__(self, other: Value) -> Expr:
        return Expr("+", (self, lift(other)))

    def __radd__(self, other: Value) -> Expr:
        return Expr("+", (lift(other), self))

    def __sub__(self, other: Value) -> Expr:
        return Expr("-", (self, lift(other)))

    def __rsub__(self, other: Value) -> Expr:
        return Expr("-", (lift(other), self))

    def __mul__(self, other: Value) -> Expr:
        return Expr("*", (self, lift(other)))

    def __rmul__(self, other: Value) -> Expr:
        return Expr("*", (lift(other), self))

    def __truediv__(self, other: Value) -> Expr:
        return Expr("/", (self, lift(other)))

    def __rtruediv__(self, other: Value) -> Expr:
        return Expr("/", (lift(other), self))

    def __neg__(self) -> Expr:
        return Expr("neg", (self,))

    def __gt__(self, other: Value) -> Condition:
        return Condition(">", self, lift(other))

    def __lt__(self, other: Value) -> Condition:
        return Condition("<", self, lift(other))


def lift(value: Value) -> Expr:
    """A number as a float32 constant; an `Expr` unchanged.

    Raises:
        TypeError: The value is neither, or is not finite, or is a NumPy number of another type,
            with which NumPy would compute in float64.
    """
    if isinstance(value, Expr):
        return value
    if type(value) not in (int, float, np.float32):
        kind = type(value).__name__
        raise TypeError(
            f"{value!r} ({kind}) in a method: use Python numbers and hiso.core.method.ops"
        )
    if not np.isfinite(np.float32(value)):
        raise TypeError(f"the literal {value!r} in a method is not a finite float32")
    return Expr("const", (float(np.float32(value)),))


def var(name: str) -> Expr:
    """An input of the graph."""
    return Expr("var", (name,))


def sqrt(x: Value) -> Value:
    """Square root, correctly rounded."""
    return Expr("sqrt", (x,)) if isinstance(x, Expr) else np.sqrt(np.asarray(x, np.float32))[()]


def select(condition: Value, a: Value, b: Value) -> Value:
    """`a` where the condition holds, else `b`."""
    if isinstance(condition, Condition):
        compared = (condition.op, condition.left, condition.right)
        return Expr("select", (*compared, lift(a), lift(b)))
    return np.where(condition, np.float32(a), np.float32(b))


def maximum(a: Value, b: Value) -> Value:
    """`a` if a > b, else `b`; so a NaN in `b` is kept."""
    return select(a > b, a, b)


def absolute(x: Value) -> Value:
    """`-x` if x < 0, else `x`."""
    return select(x < 0.0, -x, x)


def sign(x: Value) -> Value:
    """1, -1 or 0."""
    return select(x > 0.0, 1.0, select(x < 0.0, -1.0, 0.0))
