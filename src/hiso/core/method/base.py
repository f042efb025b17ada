"""The base class of methods: hyper-parameters, named state, and a few pure elementwise functions.

One round r with τ local steps computes, for every weight w separately:

    d = denom(state_r)                                     frozen for the round
    for k in 0..τ-1:
        dx = s1 / d            with s1 = Σ c·u over the record's terms of step k
        w, step_state = step(w, step_state, dx)
        if k feeds the state:  round_state = learn(round_state, dx, s2)   with s2 = Σ κ·u²

and a probe measures the loss at w + (mu·u)/d. All numbers are float32.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from hiso.core.method.ops import Value
from hiso.errors import SettingsError

if TYPE_CHECKING:
    from hiso.core.measure.local import Local
    from hiso.core.record import Record

Feed = Literal["first", "last", "all"]
Needs = Literal["loss", "scores"]
Values = Mapping[str, Value]
"""State or hyper-parameters by name. Code is written for one weight and runs on all of them."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods: a frozen dataclass whose float fields are its hyper-parameters.

    A subclass sets `name` and the initial value of each state, and overrides the functions
    (`denom`, `step`, `learn`) in which it differs from plain gradient descent along the measured
    directions. These functions must use only `+ - * /` and `hiso.core.method.ops`;
    `docs/methods.md` has an example.

    Attributes:
        name: Name on the command line and in the ledger.
        step_state: Initial values of state that changes in every local step (momentum).
        round_state: Initial values of state that is fixed during a round and updated at its end.
        measures_curvature: Whether a direction also needs κ = [f(x+μz) + f(x−μz) − 2f(x)] / μ².
        needs: What a client measures: "loss" for mean losses, whose differences give the scalars;
            or "scores" for label scores (losses of tokens if there are no labels), from which
            `solve` computes the scalars.
        divided: Whether a scalar is divided by P to become a coefficient.
        facts: Names of the additional numbers in a reply; see `solve`. A record has their means
            over clients.
        derived: Initial values of the numbers computed from the log; see `remember`.
        auto: Whether the server sets lr; see `hiso.auto_lr`.
        labels: C if biases of C labels are also tuned; see `hiso.label_bias`. Otherwise 0.
        feed: The local steps of a round for which `learn` is called.
        lr: Learning rate η.
    """

    name: ClassVar[str]
    step_state: ClassVar[Mapping[str, float]] = {}
    round_state: ClassVar[Mapping[str, float]] = {}
    measures_curvature: ClassVar[bool] = False
    needs: ClassVar[Needs] = "loss"
    divided: ClassVar[bool] = True
    facts: ClassVar[tuple[str, ...]] = ()
    derived: ClassVar[Mapping[str, float]] = {}
    auto: ClassVar[bool] = False
    labels: ClassVar[int] = 0

    lr: float = 3e-4
    feed: Feed = "first"

    def __post_init__(self) -> None:
        odd = [
            f"{name} = {value!r} must be a number"
            for name, value in self.hyper.items()
            if type(value) is bool or not isinstance(value, Real)
        ]
        if odd:
            raise SettingsError(f"{self.name}: " + "; ".join(odd))
        problems = [
            f"{name} = {value} must be a finite number >= 0"
            for name, value in self.hyper.items()
            if not (np.isfinite(np.float32(value)) and value >= 0)
        ]
        if self.feed not in ("first", "last", "all"):
            problems.append(f"feed = {self.feed!r} must be first, last or all")
        if problems := problems or list(self.problems()):
            raise SettingsError(f"{self.name}: " + "; ".join(problems))

    def problems(self) -> Iterator[str]:
        """Problems with hyper-parameters that are finite numbers >= 0, one sentence each.

        Compare the values after rounding to float32, in which 0.99999999 is 1.
        """
        return iter(())

    @property
    def hyper(self) -> dict[str, float]:
        """The numeric hyper-parameters by name; each record may change them."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "feed"}

    @property
    def state(self) -> dict[str, float]:
        """Initial value of every state, in the order used in storage and in the digest."""
        return {**self.step_state, **self.round_state}

    def feeds(self, step: int, steps: int) -> bool:
        """Whether `learn` is called for local step `step` of `steps`."""
        if not self.round_state:
            return False
        return {"first": step == 0, "last": step == steps - 1, "all": True}[self.feed]

    def follow(
        self,
        hyper: Mapping[str, float],
        derived: Mapping[str, float],
        directions: int,
        examples: int | None,
    ) -> dict[str, float]:
        """Hyper-parameters that are computed from the round and the log before it, not set by
        hand.

        Args:
            hyper: The hyper-parameters that are set.
            derived: The method's values derived from the log.
            directions: P.
            examples: Examples of all sampled clients in one local step, m·B; None if the batch
                size is not known.

        Raises:
            SettingsError: A hyper-parameter cannot be computed, because a value is not known.
        """
        del hyper, derived, directions, examples
        return {}

    def known(self, examples: int | None, name: str) -> int:
        """`examples` as passed to `follow`, checked for the hyper-parameter `name` that needs it.

        Raises:
            SettingsError: The batch size is not known.
        """
        if examples is None:
            raise SettingsError(
                f"{name} of {self.name} follows from the batch size, which the identity does not "
                "tell: set it, or give the identity a batch_size"
            )
        return examples

    def rate(self, plain: float, hyper: Mapping[str, float]) -> float:
        """The lr with which the method moves as far, in the long run, as w ← w − plain · dx."""
        del hyper
        return plain

    def solve(
        self,
        local: Local,
        facts: Mapping[str, float],
        hyper: Mapping[str, float],
        derived: Mapping[str, float],
    ) -> tuple[NDArray[np.float64], dict[str, float]]:
        """A client's scalars of one local step, float64 [P], and its facts (`needs` = scores).

        A pure function that only the client runs: only its rounded results are sent.

        Args:
            local: The quadratic model of the client's batch along the step's directions.
            facts: The facts from the previous local step of the round; empty in the first step. A
                reply has the facts of its last step.
            hyper: The current hyper-parameters.
            derived: The method's values derived from the log before the round.
        """
        del hyper, derived, facts
        return local.gradient, {}

    def remember(self, derived: Mapping[str, float], record: Record) -> Mapping[str, float]:
        """The derived values after a record, from the values before it: float64 numbers.

        A pure function: every replica runs it during replay, and keeps the result in `derived`.
        """
        del record
        return derived

    def biases(
        self, derived: Mapping[str, float], facts: Mapping[str, float]
    ) -> NDArray[np.float64] | None:
        """b, which is added to the labels' scores, float64 [C]; None if there are no biases.

        Args:
            derived: The method's values derived from the log.
            facts: The facts of a client's local steps so far.
        """
        del derived, facts

    def denom(self, state: Values, hyper: Values) -> Value | None:
        """The denominator of a direction, from the round state; None for 1."""
        del state, hyper

    def step(self, w: Value, state: Values, dx: Value, hyper: Values) -> tuple[Value, Values]:
        """One local step: the new weight and the new step state, from the step state."""
        del state
        return w - hyper["lr"] * dx, {}

    def learn(self, state: Values, dx: Value, s2: Value, hyper: Values) -> Values:
        """The new round state, from the old one, dx and, with `measures_curvature`, s2 = Σ
        κ·u².
        """
        del dx, s2, hyper
        return state
