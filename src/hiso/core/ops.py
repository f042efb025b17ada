"""The elementwise operations that a method may use, and the graph that kernels are made from.

A method is written once, with `+ - * /` and the functions here. On NumPy float32 arrays it
computes; on `Expr` it builds a graph, from which each kernel backend prints its own source. So
one definition fixes the order of operations and every rounding: literals become float32, and
each operation rounds by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Value = Any
"""A float32 array, a float32 scalar, or an `Expr`: methods do not distinguish them."""


@dataclass(frozen=True)
class Expr:
    """A node: `op` is "var", "const", "neg", "sqrt", "select", or one of + - * / > <."""

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

    def __gt__(self, other: Value) -> Expr:
        return Expr(">", (self, lift(other)))

    def __lt__(self, other: Value) -> Expr:
        return Expr("<", (self, lift(other)))

    def __bool__(self) -> bool:
        raise TypeError("methods are elementwise: use select(condition, a, b) in place of `if`")


def lift(value: Value) -> Expr:
    """A number as a float32 constant; an `Expr` as it is."""
    return value if isinstance(value, Expr) else Expr("const", (float(np.float32(value)),))


def var(name: str) -> Expr:
    """An input of the graph."""
    return Expr("var", (name,))


def sqrt(x: Value) -> Value:
    """Square root, correctly rounded."""
    return Expr("sqrt", (x,)) if isinstance(x, Expr) else np.sqrt(x)


def select(condition: Value, a: Value, b: Value) -> Value:
    """`a` where the condition holds, else `b`."""
    if isinstance(condition, Expr):
        return Expr("select", (condition, lift(a), lift(b)))
    return np.where(condition, np.float32(a), np.float32(b))


def maximum(a: Value, b: Value) -> Value:
    """`a` if a > b, else `b`; so a NaN in `b` stays."""
    return select(a > b, a, b)


def absolute(x: Value) -> Value:
    """`-x` if x < 0, else `x`."""
    return select(x < 0.0, -x, x)


def sign(x: Value) -> Value:
    """1, -1 or 0."""
    return select(x > 0.0, 1.0, select(x < 0.0, -1.0, 0.0))
