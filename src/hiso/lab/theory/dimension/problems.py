"""Federated problems with a known Hessian whose loss costs O(d): one number per weight and loss.

    f(x) = Σ_j λ_j · φ(x_j; x*_j)           x starts at 0, min f = 0
    f_i(x; ξ) = f(x) − Σ_g λ_g s_g X_g      client i's batch ξ

φ is ½(x − x*)² (least squares), or the logistic loss 4·[log(1 + eˣ) − q x] with q = σ(x*), minus
its minimum: logistic regression on one-hot features of frequency 4λ_j, whose labels are 1 with
probability q. The curvature of the logistic problem at the start is λ; that of least squares is λ
everywhere. s_g is the random shift of a client and a batch along group g: X_g is x_j in the head
and Σ x_j in the tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from hiso.core.keys import raw_bits
from hiso.lab.theory.dimension.spectra import Groups, Spectrum

Curve = Literal["least_squares", "logistic"]

_LOGISTIC_START = 0.2  # with a larger value, the x* of small eigenvalues would be where σ is flat
_CHUNK = 2**20


def normals(seed: int, domain: str, *coordinates: int, count: int) -> Groups:
    """`count` standard normal numbers, a pure function of the key (Box–Muller), float64."""
    bits = raw_bits(seed, domain, coordinates, 2 * count).astype(np.float64)
    first, second = ((bits + 0.5) / 2.0**64).reshape(2, count)
    return np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second)


class Separable(nn.Module):
    """A problem f, with the weights x as its one parameter, float32 [d], at their start 0.

    Attributes:
        spectrum: λ by group, and the division of the initial loss among the groups.
        curve: φ.
        optimum: x* by group, float64 [G].
    """

    def __init__(self, spectrum: Spectrum, curve: Curve) -> None:
        super().__init__()
        self.spectrum, self.curve = spectrum, curve
        start = _LOGISTIC_START if curve == "logistic" else 1.0
        each = spectrum.counts * spectrum.values
        self.optimum = np.sqrt(2 * start * spectrum.shares / each)
        self.x = nn.Parameter(torch.zeros(spectrum.d))

    @torch.no_grad()
    def loss(self, x: Tensor) -> float:
        """f(x) − min f ≥ 0, with sums in float64."""
        return self._sums(x)[0]

    @torch.no_grad()
    def losses(self, batches: Sequence[Groups]) -> list[float]:
        """f_i of each batch at the module's weights; a batch is its shift s by group."""
        value, sums = self._sums(self.x)
        weight = self.spectrum.values * sums
        return [value - float(weight @ shift) for shift in batches]

    def _sums(self, x: Tensor) -> tuple[float, Groups]:
        """f(x), and X of each group."""
        head, values = self.spectrum.head, self.spectrum.values
        sums = np.zeros(len(values))
        single = x[:head].double()
        sums[:head] = single.numpy()
        value = float(torch.from_numpy(values[:head]) @ self._curve(single, self.optimum[:head]))
        last = self.optimum[-1:]
        for part in x[head:].split(_CHUNK):
            tail = part.double()
            value += values[-1] * float(self._curve(tail, last).sum())
            sums[-1] += float(tail.sum())
        return value, sums

    def _curve(self, x: Tensor, optimum: Groups) -> Tensor:
        best = torch.from_numpy(optimum)
        if self.curve == "least_squares":
            return (x - best).square_().mul_(0.5)
        softplus = nn.functional.softplus
        q = torch.sigmoid(best)
        return 4 * (softplus(x) - q * x - (softplus(best) - q * best))


@dataclass(frozen=True)
class Shifts:
    """The differences between clients and batches, in units of the problem's scale.

    Attributes:
        clients: Number of clients M.
        client: Size of the fixed shift of a client; the shifts of all clients sum to 0.
        batch: Size of the random shift of each batch.
        seed: Key of the shifts.
    """

    clients: int
    client: float
    batch: float
    seed: int

    def scale(self, spectrum: Spectrum) -> Groups:
        """Deviation of s in each group for size 1: ½ Σ λ s² over X would be 1 in expectation.

        The n weights of the tail share one shift, so it contributes n·λ·s².
        """
        groups = len(spectrum.values)
        return np.sqrt(2 / (groups * spectrum.values * spectrum.counts))

    def gradient_noise(self, spectrum: Spectrum, sampled: int) -> Groups:
        """Variance of the mean of `sampled` clients' gradients, per weight and by group, [G]."""
        left = (self.clients - sampled) / max(1, self.clients - 1)
        share = 1 - 1 / self.clients  # variance that remains after centring
        variance = (self.batch**2 + share * left * self.client**2) / sampled
        return variance * (spectrum.values * self.scale(spectrum)) ** 2


class Shard:
    """A client's data: only its shifts.

    Attributes:
        examples: 1, so that all clients have equal weights.
    """

    examples = 1

    def __init__(self, client: int, shifts: Shifts, spectrum: Spectrum) -> None:
        self._client, self._shifts = client, shifts
        groups = len(spectrum.values)
        drawn = [
            normals(shifts.seed, "client shift", i, count=groups) for i in range(shifts.clients)
        ]
        self._scale = shifts.scale(spectrum)
        self._own = shifts.client * (drawn[client] - np.mean(drawn, axis=0))

    def batch(self, round: int, step: int) -> Groups:
        """The shift of a batch, by group."""
        count, seed = len(self._scale), self._shifts.seed
        fresh = normals(seed, "batch shift", self._client, round, step, count=count)
        return self._scale * (self._own + self._shifts.batch * fresh)
