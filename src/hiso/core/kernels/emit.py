"""Prints a method's expression graph as source code, each distinct node once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hiso.core.method.base import Method
from hiso.core.method.ops import Expr, lift, var


@dataclass(frozen=True)
class Dialect:
    """The syntax that differs between kernel languages."""

    const: str
    sqrt: str
    divide: str
    select: str


NUMBA = Dialect(
    const="f32({!r})", sqrt="sqrt({})", divide="{} / {}", select="({3} if {1} {0} {2} else {4})"
)


TRITON = Dialect(
    const="{!r}",
    sqrt="tl.sqrt_rn({})",
    divide="tl.div_rn({}, {})",
    select="tl.where({1} {0} {2}, {3}, {4})",
)


class Printer:
    """Collects assignments `v0 = …` for the nodes of one block without branches."""

    def __init__(self, dialect: Dialect) -> None:
        self.lines: list[str] = []
        self._dialect = dialect
        self._by_text: dict[str, str] = {}
        self._by_node: dict[Expr, str] = {}

    def name(self, expr: Expr) -> str:
        """The name or literal for `expr`, after printing the nodes that it needs."""
        if expr.op == "var":
            return expr.args[0]
        if expr.op == "const":
            return self._dialect.const.format(*expr.args)
        if expr not in self._by_node:
            args = [self.name(arg) if isinstance(arg, Expr) else arg for arg in expr.args]
            text = {
                "neg": "-{}",
                "sqrt": self._dialect.sqrt,
                "/": self._dialect.divide,
                "select": self._dialect.select,
            }.get(expr.op, "{} " + expr.op + " {}").format(*args)
            if text not in self._by_text:
                self._by_text[text] = f"v{len(self._by_text)}"
                self.lines.append(f"{self._by_text[text]} = {text}")
            self._by_node[expr] = self._by_text[text]
        return self._by_node[expr]


@dataclass(frozen=True)
class Pieces:
    """A method's functions as graphs over `w`, `dx`, `sk` (Σ κ·u²), `h_<hyper>` and
    `x_<state>`.
    """

    denom: Expr | None
    w: Expr
    step_state: Mapping[str, Expr]
    round_state: Mapping[str, Expr]


def trace(method: Method) -> Pieces:
    """Runs the functions of a method on symbols.

    Raises:
        TypeError: A function returns undeclared states, or does not return all declared ones.
    """
    twice = set(method.step_state) & set(method.round_state)
    for name in sorted({"w", "weights"} & set(method.state) | twice):
        raise TypeError(f"{method.name}: a state cannot be called {name!r}, that name is taken")
    step_state = {name: var(f"x_{name}") for name in method.step_state}
    round_state = {name: var(f"x_{name}") for name in method.round_state}
    hyper = {name: var(f"h_{name}") for name in method.hyper}
    denom = method.denom(round_state, hyper)
    w, stepped = method.step(var("w"), step_state, var("dx"), hyper)
    learned = method.learn(round_state, var("dx"), var("sk"), hyper)
    for piece, got, declared in (
        ("step", stepped, method.step_state),
        ("learn", learned, method.round_state),
    ):
        if set(got) != set(declared):
            raise TypeError(
                f"{method.name}.{piece} gives the states {sorted(got)}, "
                f"but the method declares {sorted(declared)}"
            )
    return Pieces(
        denom=None if denom is None else lift(denom),
        w=lift(w),
        step_state={name: lift(value) for name, value in stepped.items()},
        round_state={name: lift(value) for name, value in learned.items()},
    )
