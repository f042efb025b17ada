"""What a method is: hyper-parameters, named state, and a few pure elementwise pieces.

One round r with τ local steps does, for every weight w by itself:

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
"""State or hyper-parameters by name, seen for one weight (all at once)."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods: a frozen dataclass whose float fields are its hyper-parameters.

    A subclass sets `name`, the initial value of each state it has, and overrides those pieces
    in which it differs from plain gradient descent along the measured directions. The pieces
    must be built from `+ - * /` and `hiso.core.method.ops`; `docs/methods.md` walks through one.

    Attributes:
        name: Name on the command line and in the ledger.
        step_state: Initial values of state that moves with every local step (momentum).
        round_state: Initial values of state that is frozen in a round and learned at its end.
        measures_curvature: Whether a direction also needs κ = [f(x+μz) + f(x−μz) − 2f(x)] / μ².
        needs: What a client measures: mean losses, whose differences are its scalars; or label
            scores (losses of tokens where there are no labels), of which `solve` makes them.
        divided: Whether a scalar is divided by P to become a coefficient.
        facts: Names of the numbers that a reply carries beside its scalars; see `solve`. A record
            has their means over clients.
        derived: Initial values of what derives from the log; see `remember`.
        auto: Whether the server sets lr; see `hiso.auto_lr`.
        labels: C, where biases of C labels are tuned too; see `hiso.label_bias`. 0 elsewhere.
        feed: Which local steps of a round reach `learn`.
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
        """What is wrong with hyper-parameters that are finite numbers >= 0, a sentence each.

        Compare them as float32 has them: 0.99999999 is 1 there.
        """
        return iter(())

    @property
    def hyper(self) -> dict[str, float]:
        """The numeric hyper-parameters by name; a record may change them from round to round."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "feed"}

    @property
    def state(self) -> dict[str, float]:
        """Initial value of every state, in the order of storage and of the digest."""
        return {**self.step_state, **self.round_state}

    def feeds(self, step: int, steps: int) -> bool:
        """Whether local step `step` of `steps` reaches `learn`."""
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
        """Hyper-parameters that are not set by hand, but follow from a round and the log before it.

        Args:
            hyper: Those that are to hold.
            derived: What the method remembers of the log.
            directions: P.
            examples: Examples of all clients that are asked, for one local step: m·B; None if
                the batch size is not known.

        Raises:
            SettingsError: One that is not set follows from what is not known.
        """
        del hyper, derived, directions, examples
        return {}

    def known(self, examples: int | None, name: str) -> int:
        """`examples` as `follow` is given them, for the hyper-parameter `name` that needs them.

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
        """The lr with which the method goes as far, in the long run, as w ← w − plain · dx does."""
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

        A pure function, run by the client alone: only its rounded results travel.

        Args:
            local: What the client's batch says along the step's directions.
            facts: Those that the round's last local step gave; empty in its first. A reply has
                those of its last step.
            hyper: Hyper-parameters in force.
            derived: What the method remembers of the log before the round.
        """
        del hyper, derived, facts
        return local.gradient, {}

    def remember(self, derived: Mapping[str, float], record: Record) -> Mapping[str, float]:
        """What derives from the log after a record, from what did before it: float64 numbers.

        A pure function: every replica runs it in replay, and finds its result in `derived`.
        """
        del record
        return derived

    def biases(
        self, derived: Mapping[str, float], facts: Mapping[str, float]
    ) -> NDArray[np.float64] | None:
        """b, what is added to the labels' scores, float64 [C]; None where nothing is.

        Args:
            derived: What the method remembers of the log.
            facts: Those of a client's local steps so far.
        """
        del derived, facts

    def denom(self, state: Values, hyper: Values) -> Value | None:
        """What a direction is divided by, from the round state; None for 1."""
        del state, hyper

    def step(self, w: Value, state: Values, dx: Value, hyper: Values) -> tuple[Value, Values]:
        """One local step: the new weight and the new step state, from the step state."""
        del state
        return w - hyper["lr"] * dx, {}

    def learn(self, state: Values, dx: Value, s2: Value, hyper: Values) -> Values:
        """The new round state from the old, the step dx and, with `curvature`, s2 = Σ κ·u²."""
        del dx, s2, hyper
        return state
