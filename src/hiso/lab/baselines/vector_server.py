"""The server's side of a baseline: Flower's own strategies, run in this process."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from flwr.app import (
    DEFAULT_TTL,
    Array,
    ArrayRecord,
    Message,
    MessageType,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.app.message import make_message
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedYogi
from flwr.serverapp.strategy.fedopt import FedOpt
from numpy.typing import NDArray
from torch import Tensor

from hiso.core.replica.replica import Replica

_STRATEGIES: dict[str, type[FedAvg]] = {
    "fedavg": FedAvg,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "fedzo": FedAvg,
}
_MOMENTS = ("m_t", "v_t")
_SERVER = 1


@dataclass(frozen=True)
class Update:
    """What a client sends: its weights after τ local steps.

    Attributes:
        client: Number of the client.
        weights: A serialised copy of the float32 weights, by parameter name.
        examples: The client's weight in the mean.
        loss: Mean loss of the client's first batch at the global weights.
    """

    client: int
    weights: ArrayRecord
    examples: int
    loss: float


def pack(weights: Mapping[str, Tensor]) -> ArrayRecord:
    """Weights in Flower's format: bytes that share no memory with the tensors."""
    return ArrayRecord(
        {name: Array(tensor.detach().cpu().numpy()) for name, tensor in weights.items()}
    )


def by_name(replica: Replica, flat: Tensor) -> dict[str, Tensor]:
    """Views into a flat buffer with the layout of `replica.weights`, by parameter name."""
    return {
        entry.name: flat[entry.offset : entry.offset + entry.numel].view(entry.shape)
        for entry in replica.layout
    }


class Server:
    """The server of a baseline, with n_i = 1 or the client's number of examples.

    w̄ = Σ_i n_i·w_i / Σ_i n_i,  Δ = w̄ − w, and elementwise in round t = 1, 2, … as Flower counts:

        fedavg, fedzo:  w ← w̄
        the others:     m ← β₁·m + (1 − β₁)·Δ,   w ← w + η·m / (√v + τ)
        fedadagrad:     β₁ = 0,   v ← v + Δ²
        fedyogi:        v ← v − (1 − β₂)·Δ²·sign(v − Δ²)
        fedadam:        v ← β₂·v + (1 − β₂)·Δ²,   η·√(1 − β₂^(t+1)) / (1 − β₁^(t+1)) in place of η

    m and v start at 0. Flower's `aggregate_train` computes everything in NumPy. At the end the
    weights are rounded to float32, the dtype in which clients load them.

    Source: McMahan et al. (2017), Algorithm 1; Reddi et al., *Adaptive federated optimization*
    (2021), Algorithm 2. Deviations, all from Flower: v starts at 0, while the paper has τ² or
    more; FedAdam has a bias correction, which the paper omits, with the exponent t + 1 where Adam
    has t. FedYogi has no bias correction.

    Example:
        >>> server = Server("fedavg", {"lr": 0.1})
        >>> server.aggregate(0, weights, [update])["bias"].dtype
        dtype('float32')
    """

    def __init__(self, method: str, hyper: Mapping[str, float]) -> None:
        """A server for `method`, one of `BASELINES`; `lr` in `hyper` is used by the clients."""
        own = {name: value for name, value in hyper.items() if name not in ("lr", "server_lr")}
        eta = {"eta": hyper["server_lr"]} if "server_lr" in hyper else {}
        self._strategy = _STRATEGIES[method](**own, **eta)  # pyright: ignore[reportArgumentType]

    def aggregate(
        self, round: int, weights: Mapping[str, Tensor], updates: Sequence[Update]
    ) -> dict[str, NDArray[np.float32]]:
        """The new global weights, float32 by name, in new memory.

        Args:
            round: The round, from 0.
            weights: The global weights with which the clients started.
            updates: At least one update, from distinct clients, in any order.
        """
        if isinstance(self._strategy, FedOpt):
            now = {name: tensor.cpu().numpy().copy() for name, tensor in weights.items()}
            self._strategy.current_arrays = now
        replies = [_message(round, u) for u in sorted(updates, key=lambda update: update.client)]
        with _quiet(), np.errstate(over="ignore", invalid="ignore"):  # the next loss shows it
            found, _ = self._strategy.aggregate_train(round + 1, replies)
            assert found is not None
            return {name: array.numpy().astype(np.float32) for name, array in found.items()}

    @property
    def state(self) -> dict[str, NDArray[np.float32]]:
        """The moments by "m_t/" or "v_t/" and parameter name; empty before round 0."""
        moments = {kind: getattr(self._strategy, kind, None) or {} for kind in _MOMENTS}
        return {
            f"{kind}/{name}": np.asarray(value)
            for kind, values in moments.items()
            for name, value in values.items()
        }

    def restore(self, state: Mapping[str, NDArray[np.float32]]) -> None:
        """Restores the moments in `state`."""
        for kind in _MOMENTS:
            moment = {
                name.removeprefix(kind + "/"): value
                for name, value in state.items()
                if name.startswith(kind + "/")
            }
            if moment:
                setattr(self._strategy, kind, moment)


def _message(round: int, update: Update) -> Message:
    """The client's reply in the form in which Flower's grid returns it."""
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=update.client,
        dst_node_id=_SERVER,
        reply_to_message_id="",
        group_id=str(round),
        created_at=0.0,
        ttl=DEFAULT_TTL,
        message_type=MessageType.TRAIN,
    )
    weight = MetricRecord({"num-examples": update.examples})
    content = RecordDict({"arrays": update.weights, "metrics": weight})
    return make_message(metadata, content)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides Flower's messages about every aggregation."""
    log = logging.getLogger("flwr")
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        yield
    finally:
        log.setLevel(level)
