"""A point at which a loss is measured: the coordinates of a direction, and a sign."""

from __future__ import annotations

from dataclasses import dataclass

from hiso.core.noise import check_counter


@dataclass(frozen=True, slots=True)
class Point:
    """The weights w_k + sign · (mu·u)/denom, with u = u(round, step, stream, direction).

    With `sign` 0 the point is w_k itself, the weights at local step k of the round; then stream
    and direction are 0.

    Raises:
        ValueError: A coordinate does not fit the noise format's counter.
    """

    round: int
    step: int = 0
    stream: int = 0
    direction: int = 0
    sign: int = 0

    def __post_init__(self) -> None:
        check_counter(self.round, self.step, self.stream, self.direction)
