"""Rebuilds the state that a method learned in a run, without the run's model.

A method's round state (HiSo's h) of a weight is a function of the weight's directions and of the
logged scalars, and does not depend on the weights. So the log is replayed on a stand-in of min(d,
2^17) weights in one parameter. Its state has the same bits as the first elements of the model's
flat buffer; padding between parameters counts as elements. The stand-in is a sample: the h of all
d weights has the same distribution.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from hiso.core.replica.replica import Replica
from hiso.report.gather import Floats, Run
from hiso.run.observer import Observer

LARGEST = 2**17
POSITIONS = 41
BINS = 48
QUANTILES = (0.05, 0.5, 0.95)


@dataclass(frozen=True, eq=False)
class History:
    """The distribution of a run's round state at several positions.

    Attributes:
        name: Name of the state: h.
        sample: Number of weights of the stand-in.
        position: Positions of the log, int64 [N], N <= 41.
        edges: Edges of the bins, ascending with a constant ratio, float64 [B + 1].
        share: Share of the weights in each bin at each position, float64 [B, N].
        quantiles: Quantiles of the weights' state at 5, 50 and 95 %, float64 [3, N].
    """

    name: str
    sample: int
    position: NDArray[np.int64]
    edges: Floats
    share: Floats
    quantiles: Floats


def state_history(run: Run, observer: Observer) -> History | None:
    """Replays the log of a run on a stand-in.

    Returns None for a run without a ledger, for a method without round state, and for a method
    that hiso does not know.
    """
    identity = None if run.log is None else run.log.identity
    if run.log is None or identity is None or not identity.method.round_state:
        return None
    sample = LARGEST if run.summary is None else min(run.summary.trainable_weights, LARGEST)
    (name, *_) = identity.method.round_state
    module = nn.ParameterList([torch.zeros(sample)])
    replica = Replica(module, identity)
    positions = np.unique(np.linspace(0, run.rounds, POSITIONS).astype(np.int64))
    values = np.empty((len(positions), sample), np.float32)
    with observer.phase(f"replaying {name} of {run.path.name}", run.rounds) as advance:
        for row, position in zip(values, positions, strict=True):
            records = run.log.records[replica.position : position]
            replica.replay(records)
            row[:] = replica.state[name][:sample].numpy()
            advance(len(records))
    return _histogram(name, positions, values)


def _histogram(name: str, positions: NDArray[np.int64], values: NDArray[np.float32]) -> History:
    least, largest = float(values.min()), float(values.max())
    least = max(least, largest * 1e-6, float(np.finfo(np.float32).tiny))
    edges = np.geomspace(least / 1.01, max(largest, least) * 1.01, BINS + 1)
    inside = np.clip(values, edges[0], edges[-1])
    counts = [np.histogram(row, edges)[0] for row in inside]
    return History(
        name=name,
        sample=values.shape[1],
        position=positions,
        edges=edges,
        share=np.array(counts, np.float64).T / values.shape[1],
        quantiles=np.quantile(values, QUANTILES, axis=1).astype(np.float64),
    )
