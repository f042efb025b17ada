"""A replica: weights and method state at a position of the log, and a model that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hiso.core.kernels import Backend, Spot, Steps, load_kernels, pack
from hiso.core.layout import Entry, Layout
from hiso.core.method import Method
from hiso.core.noise import TILE, Noise
from hiso.core.probe import Point
from hiso.core.record import Record
from hiso.errors import ProtocolError, SettingsError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Replica:
    """Flat float32 weights and method state, and the model whose parameters view a copy.

    The trainable parameters of `module` (those with `requires_grad`) move into one contiguous
    float32 buffer, each starting on a tile, tied ones once. The module's parameters become views
    into a second buffer of the compute dtype, which `write` fills with w or w + mu·z in one
    pass: w itself is never touched by a probe. Frozen parameters and buffers stay as they are.
    The module is put into eval mode.

    Memory per trainable weight: 4 bytes (w), 4 per state of the method, 2 or 4 (compute copy).

    Example:
        >>> from hiso.core.methods import ZoSgd
        >>> replica = Replica(nn.Linear(3, 2), ZoSgd(lr=0.1), seed=0, backend="reference")
        >>> replica.position, replica.numel
        (0, 8)

    Attributes:
        module: The model, in eval mode.
        method: The method whose state is kept.
        layout: Name, shape and offset of each parameter.
        weights: w, float32 [layout.tiles · 2048], zero on padding.
        state: The method's buffers by name, shaped like `weights`.
        hyper: Hyper-parameters in force at this position.
        position: Number of records folded.
        chain: Chain hash of the log at this position.

    Raises:
        SettingsError: There is nothing to train, or a device or dtype is not supported.
    """

    def __init__(
        self,
        module: nn.Module,
        method: Method,
        *,
        seed: int,
        noise: Noise = "binomial",
        dtype: torch.dtype = torch.float32,
        backend: Backend = "auto",
        chain: bytes = b"",
    ) -> None:
        parameters = _trainable(module)
        if dtype not in DTYPES.values():
            raise SettingsError(f"compute dtype {dtype} is not one of {', '.join(DTYPES)}")
        if any(p.device.type != "cpu" for _, p in parameters):
            raise SettingsError("the model is not on the CPU, the only device with kernels so far")
        try:
            self.layout = Layout.of((name, tuple(p.shape)) for name, p in parameters)
        except ValueError as error:
            raise SettingsError(str(error)) from error
        size = self.layout.tiles * TILE
        self.module = module.eval()
        self.method = method
        self.weights = torch.zeros(size)
        self.state = {name: torch.full((size,), value) for name, value in method.state.items()}
        self.hyper = dict(method.hyper)
        self.position = 0
        self.chain = chain
        self._kernels = load_kernels(backend, method, noise, seed, self.layout)
        self._digest: int | None = None
        self._compute = torch.zeros(size, dtype=dtype)
        self._entries: dict[int, Entry] = {}
        self._adopt(parameters)
        self.write()

    def _adopt(self, kept: list[tuple[str, nn.Parameter]]) -> None:
        """Moves the weights in, and makes each trainable parameter, tied ones too, a view."""
        places = {_place(p): entry for entry, (_, p) in zip(self.layout, kept, strict=True)}
        trainable = [p for p in self.module.parameters() if p.requires_grad]
        for parameter, entry in [(p, places[_place(p)]) for p in trainable]:
            here = slice(entry.offset, entry.offset + entry.numel)
            self.weights[here] = parameter.detach().reshape(-1).to(torch.float32)
            parameter.data = self._compute[here].view(entry.shape)
            self._entries[id(parameter)] = entry

    @property
    def numel(self) -> int:
        """Number of trainable weights d."""
        return self.layout.numel

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype."""
        return self._compute.dtype

    @property
    def backend(self) -> str:
        """Name of the kernels' backend."""
        return self._kernels.name

    def write(
        self,
        point: Point | None = None,
        *,
        round: int = 0,
        mu: float = 0.0,
        walk: Walk | None = None,
        changes: Mapping[str, float] | None = None,
    ) -> None:
        """Fills the model's parameters with w, or with w + sign · (mu·u)/denom at `point`.

        Args:
            point: Direction and sign; None, or sign 0, for w itself.
            round: Round of the direction.
            mu: Perturbation size.
            walk: Take w from these local steps in place of the replica.
            changes: Hyper-parameters that differ from those in force (for the denominator).
        """
        self._written = (point, round, mu, walk, {**self.hyper, **(changes or {})})
        if point is None or point.sign == 0:
            self._compute.copy_(self.weights if walk is None else walk.weights)
        else:
            self._perturb(self._compute, range(self.layout.tiles))

    def rows(self, parameter: nn.Parameter, index: Tensor) -> Tensor:
        """Rows `index` of a parameter as last written, but in float32 from the master weights.

        With a half-precision compute dtype this keeps the rows of the output head that matter
        in float32. A frozen parameter's rows are simply cast.
        """
        entry = self._entries.get(id(parameter))
        if entry is None or self.dtype == torch.float32:
            return parameter[index].float()
        point, _, _, walk, _ = self._written
        width = entry.numel // entry.shape[0]
        rows: list[Tensor] = []
        for row in index.numpy().astype(int):
            start = entry.offset + int(row) * width
            if point is None or point.sign == 0:
                weights = self.weights if walk is None else walk.weights
                rows.append(weights[start : start + width])
                continue
            tiles = range(start // TILE, -(-(start + width) // TILE))
            out = torch.empty(len(tiles) * TILE)
            self._perturb(out, tiles)
            rows.append(out[start - tiles.start * TILE :][:width])
        return torch.stack(rows).view(len(rows), *entry.shape[1:])

    def _perturb(self, out: Tensor, tiles: range) -> None:
        point, round, mu, walk, hyper = self._written
        assert point is not None
        weights = self.weights if walk is None else walk.weights
        spot = Spot(round, point.step, point.stream, point.direction)
        self._kernels.perturb(out, weights, self.state, hyper, spot, point.sign * mu, tiles)

    def walk(self, changes: Mapping[str, float] | None = None) -> Walk:
        """Starts local steps from here, with `changes` to the hyper-parameters in force."""
        return Walk(self, {**self.hyper, **(changes or {})})

    def fold(self, weights: Tensor, state: Mapping[str, Tensor], steps: Steps) -> int:
        """Applies steps to the given buffers, those of the replica or of a walk; their digest."""
        return self._kernels.fold(weights, state, steps)

    def replay(self, records: Sequence[Record]) -> None:
        """Folds records in one pass over memory, then stands after the last.

        Raises:
            ProtocolError: A record is not the next one, has terms for another kind of method, or
                changes a hyper-parameter that the method does not have. Nothing was changed.
        """
        for number, record in enumerate(records, self.position):
            unknown = set(record.changes) - set(self.hyper)
            if record.round != number:
                raise ProtocolError(
                    f"the record of round {record.round} cannot be folded at position {number}: "
                    "records follow each other without gaps"
                )
            if (record.curvature is not None) != self.method.curvature or unknown:
                raise ProtocolError(
                    f"the record of round {number} was made by another method than "
                    f"{self.method.name}: "
                    + (
                        f"it changes {', '.join(sorted(unknown))}"
                        if unknown
                        else f"it has {'no ' if self.method.curvature else ''}curvature scalars"
                    )
                )
        steps, hyper = pack(self.method, records, self.hyper)
        self._digest = self.fold(self.weights, self.state, steps)
        self.hyper = hyper
        self.position += len(records)
        for record in records:
            self.chain = record.chain(self.chain)

    def digest(self) -> int:
        """64-bit fingerprint of the bits of w and the state; equal on every backend."""
        if self._digest is None:
            nothing, _ = pack(self.method, [], self.hyper)
            self._digest = self.fold(self.weights, self.state, nothing)
        return self._digest

    def restore(
        self, buffers: Mapping[str, Tensor], position: int, chain: bytes, hyper: Mapping[str, float]
    ) -> None:
        """Stands where a snapshot was taken. `buffers` holds `weights` and each state by name.

        Raises:
            ProtocolError: The buffers are not those of this method and layout.
        """
        mine = {"weights": self.weights, **self.state}
        if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in buffers.items()}:
            raise ProtocolError("the snapshot was taken from another model or method")
        for name, buffer in mine.items():
            buffer.copy_(buffers[name])
        self.position, self.chain, self.hyper = position, chain, dict(hyper)
        self._digest = None


class Walk:
    """A client's local steps: weights and step state of its own, round state of the replica.

    Costs one float32 buffer and one for each step state; the replica is only read.

    Attributes:
        weights: w after the local steps so far, like `Replica.weights`.
    """

    def __init__(self, replica: Replica, hyper: Mapping[str, float]) -> None:
        self._replica = replica
        self._hyper = np.array([[hyper[name] for name in replica.method.hyper]], np.float32)
        self.weights = replica.weights.clone()
        self._state = {
            name: buffer.clone() if name in replica.method.step_state else buffer
            for name, buffer in replica.state.items()
        }

    def step(
        self, *, round: int, step: int, stream: int, coefficients: NDArray[np.float32]
    ) -> None:
        """One local step with the client's own c_p = g_p / P, float32 [P]; learns nothing."""
        count = len(coefficients)
        steps = Steps(
            round=np.array([round], np.uint64),
            first=np.array([True]),
            feeds=np.array([False]),
            start=np.array([0, count], np.int64),
            counter=np.arange(count, dtype=np.uint64) + np.uint64(step << 16),
            stream=np.full(count, stream, np.uint64),
            coefficient=coefficients,
            curvature=np.zeros(count, np.float32),
            hyper=self._hyper,
        )
        self._replica.fold(self.weights, self._state, steps)


def _place(parameter: Tensor) -> tuple[Any, ...]:
    return parameter.data_ptr(), tuple(parameter.shape), parameter.stride(), parameter.dtype


def _trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Trainable parameters by name; of those that share storage, the first."""
    seen: set[tuple[Any, ...]] = set()
    kept: list[tuple[str, nn.Parameter]] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and _place(parameter) not in seen:
            seen.add(_place(parameter))
            kept.append((name, parameter))
    return kept
