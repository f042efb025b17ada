"""The server's settings for its rounds; all of them may change from round to round."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import get_args

import numpy as np

from hiso.core.measure.probe import Scheme
from hiso.core.record import MAX_STREAM
from hiso.errors import SettingsError
from hiso.ring.aggregate import Weighting
from hiso.ring.messages import Plan, probe_problems

MOST_OVERSAMPLE = 10.0
"""Largest share of further clients."""


@dataclass(frozen=True, kw_only=True)
class RoundSettings:
    """The settings for the next rounds.

    Attributes:
        clients: Number of clients M.
        sample: Number of clients m sampled in a round.
        oversample: Share of further clients that are asked, because some may not answer: of
            `asked` clients, the first `sample` that answer are enough.
        steps: Number of local steps τ.
        directions: Number of directions P.
        mu: Perturbation size μ.
        scheme: Forward or central differences.
        per_client: Whether every client measures along its own directions.
        withdrawn: Clients that have left for good and are never sampled.
        weighting: Whether clients have equal weights or are weighted by their number of examples,
            up to ten times the median of the round.
        min_replies: Smallest number of good replies; with fewer, the attempt is aborted.
        divergence_factor: A round is not recorded if the clients' median loss, in the median of
            the last nine rounds, exceeds this many times that of the first nine (squared, until
            there are nine); None for no limit.
        clip: How many times the median size of the last 50 rounds' replies a reply may count (see
            `Clip`); 0 for no limit.
        normalise: Update rate ν of the mean diagonal h̄ (`MeanDiagonal`): `lr` is divided by h̄
            and `mu` by √h̄. This is HiSo with one number, for a method without a diagonal. 0 for
            no division. Fixed for the whole run.
        hyper: New values for hyper-parameters of the method; the others stay unchanged.

    Raises:
        SettingsError: A value is out of range or contradicts another one.
    """

    clients: int
    sample: int
    steps: int
    directions: int
    mu: float
    oversample: float = 0.0
    scheme: Scheme = "forward"
    per_client: bool = False
    withdrawn: frozenset[int] = frozenset()
    weighting: Weighting = "plain"
    min_replies: int = 1
    divergence_factor: float | None = None
    clip: float = 0.0
    normalise: float = 0.0
    hyper: Mapping[str, float] = field(default_factory=dict[str, float])

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise SettingsError("round settings: " + "; ".join(problems))

    @property
    def asked(self) -> int:
        """Number of clients that are asked in a round: ⌈sample · (1 + oversample)⌉, at most all."""
        return min(self.clients, math.ceil(self.sample * (1 + self.oversample) - 1e-9))

    def plan(self, run: str, round: int, chain: bytes) -> Plan:
        """What the plans of all clients in a round have in common; records are to be added.

        Args:
            run: The run's id.
            round: The number of the round.
            chain: The chain hash of the log before the round, 32 bytes.
        """
        return Plan(
            run=run,
            round=round,
            client=0,
            records=(),
            chain=chain,
            steps=self.steps,
            directions=self.directions,
            mu=self.mu,
            scheme=self.scheme,
            stream=0,
        )

    def _problems(self) -> Iterator[str]:
        if not 1 <= self.clients <= MAX_STREAM:
            yield f"clients = {self.clients} must lie in [1, {MAX_STREAM}]"
        if not 1 <= self.sample <= self.clients:
            yield f"sample = {self.sample} must lie in [1, clients = {self.clients}]"
        if not 1 <= self.min_replies <= self.sample:
            yield f"min_replies = {self.min_replies} must lie in [1, sample = {self.sample}]"
        if strange := sorted(self.withdrawn - set(range(self.clients))):
            yield f"withdrawn = {strange}: there are only the clients 0..{self.clients - 1}"
        elif self.clients - len(self.withdrawn) < self.min_replies:
            yield (
                f"withdrawn leaves {self.clients - len(self.withdrawn)} of {self.clients} clients, "
                f"fewer than min_replies = {self.min_replies}"
            )
        if not 0 <= self.oversample <= MOST_OVERSAMPLE:
            yield f"oversample = {self.oversample} must lie in [0, {MOST_OVERSAMPLE}]"
        yield from probe_problems(self.steps, self.directions, self.mu, self.scheme)
        if self.weighting not in get_args(Weighting):
            yield f"weighting = {self.weighting!r} must be " + " or ".join(get_args(Weighting))
        if self.divergence_factor is not None and not self.divergence_factor > 1:
            yield f"divergence_factor = {self.divergence_factor} must be above 1, or None"
        if not (self.clip == 0 or 1 <= self.clip < float("inf")):
            yield f"clip = {self.clip} must be 0, or a finite number >= 1"
        if not 0 <= self.normalise < 1:
            yield f"normalise = {self.normalise} must lie in [0, 1)"
        if self.normalise and "lr" not in self.hyper:
            yield f"normalise = {self.normalise} divides lr: name lr among hyper"
        for name, value in self.hyper.items():
            if not 0 <= value <= float(np.finfo(np.float32).max):
                yield f"hyper-parameter {name} = {value} must be a finite number >= 0"
