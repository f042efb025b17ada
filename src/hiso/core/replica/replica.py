"""A replica: weights and method state at a position of the log, and a model that reads them."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args
from weakref import ReferenceType, ref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hiso.core.identity import Identity
from hiso.core.kernels import Backend, load_kernels, pack, sum_parts
from hiso.core.measure.backward import check_backward, take_gradients
from hiso.core.method.derived import remember_all
from hiso.core.noise import TILE
from hiso.core.noise.layout import Entry, Layout, runs
from hiso.core.noise.point import Point
from hiso.core.record import Record
from hiso.core.replica.adopt import find_trainable, mark, unmark
from hiso.core.replica.lean import attach
from hiso.core.replica.local_steps import Walk
from hiso.core.replica.sequence import check_sequence
from hiso.core.replica.watch import Watch
from hiso.errors import ProtocolError, SettingsError

Memory = Literal["full", "lean"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Replica:
    """Flat float32 weights and method state, and the model, whose parameters are views of a copy.

    The trainable parameters of `module` (those with `requires_grad`) move into one contiguous
    float32 buffer; each starts at a tile boundary, and tied parameters are stored once. The
    module's parameters become views into a second buffer of the compute dtype, which `write` fills
    with w or w + mu·z in one pass; a probe never changes w itself. Frozen parameters and buffers
    are unchanged. The module is put into eval mode.

    From then on only records may change weights and module. `write`, `walk`, `replay` and `digest`
    raise a `ProtocolError` if other code changed them: if it cast or moved the module, replaced,
    loaded or trained a parameter, wrote to `weights` or `state`, or called `train()`.

    Memory per trainable weight: 4 bytes (w), 4 per state of the method, 2 or 4 (compute copy).
    With `memory="lean"` there is no compute copy: a module's parameters are created when it runs,
    and freed afterwards. The bits are the same; every forward pass then also takes the time of a
    `write`.

    Example:
        >>> from hiso.core.method.registry import ZoSgd
        >>> identity = Identity(method=ZoSgd(lr=0.1), seed=0)
        >>> replica = Replica(nn.Linear(3, 2), identity, backend="reference")
        >>> replica.position, replica.numel
        (0, 8)

    Attributes:
        module: The model, in eval mode.
        identity: The identity of the run whose log is folded.
        method: The identity's method, whose state is kept.
        layout: Name, shape and offset of each parameter.
        weights: w, float32 [layout.tiles · 2048], zero on padding.
        state: The method's buffers by name, shaped like `weights`.
        hyper: Hyper-parameters at this position.
        derived: The method's values derived from the log; see `Method.remember`.
        position: Number of records folded.
        chain: Chain hash of the log at this position.

    Raises:
        SettingsError: There is nothing to train, or a device or backend is not supported.
    """

    def __init__(
        self,
        module: nn.Module,
        identity: Identity,
        *,
        backend: Backend = "auto",
        memory: Memory = "full",
    ) -> None:
        if memory not in get_args(Memory):
            raise SettingsError(f"memory {memory!r} is not one of {', '.join(get_args(Memory))}")
        groups = find_trainable(module)
        device = next(iter(groups.values()))[0].device
        try:
            self.layout = Layout.of((name, tuple(ps[0].shape)) for name, ps in groups.items())
            self._kernels = load_kernels(
                backend, identity.method, identity.noise, identity.seed, self.layout, device
            )
        except ValueError as error:
            raise SettingsError(str(error)) from error
        size = self.layout.tiles * TILE
        self.module = module.eval()
        self.identity, self.method = identity, identity.method
        self._entries: dict[int, Entry] = {}
        self.weights = torch.zeros(size, device=device)
        for entry, (_, tied) in zip(self.layout, groups.items(), strict=True):
            self._take(entry, tied)
        self.state = {
            name: torch.full((size,), value, dtype=torch.float32, device=device)
            for name, value in self.method.state.items()
        }
        self.hyper = dict(self.method.hyper)
        self.derived = self.method.derived
        self.position = 0
        self.chain = identity.root
        self._torn = False
        self._digest: int | None = None
        self._lean = memory == "lean"
        dtype = DTYPES[identity.dtype]
        self._compute = torch.zeros(0 if self._lean else size, dtype=dtype, device=device)
        self._written: _Written | None = None
        self._known = {id(parameter) for parameter in module.parameters()}
        self._hooks = attach(module, self._entries, dtype, self._parameter) if self._lean else []
        if not self._lean:
            self._show(self._compute)
        self._watch = Watch(module, [self.weights, *self.state.values()])
        self.write()

    def _take(self, entry: Entry, tied: list[nn.Parameter]) -> None:
        """Moves a parameter's weights into the buffer, and frees the parameter's own memory."""
        here = slice(entry.offset, entry.offset + entry.numel)
        self.weights[here] = tied[0].detach().reshape(-1).to(torch.float32)
        for parameter in tied:
            parameter.data = parameter.new_empty(0)
            self._entries[id(parameter)] = entry
            mark(parameter)

    def _show(self, buffer: Tensor) -> None:
        """Makes the module's parameters views into a flat buffer."""
        for parameter in self.module.parameters():
            if entry := self._entries.get(id(parameter)):
                here = slice(entry.offset, entry.offset + entry.numel)
                parameter.data = buffer[here].view(entry.shape)

    def release(self) -> nn.Module:
        """Gives the module ordinary float32 parameters with the weights w; tied ones stay tied.

        The replica must not be used any more. The module may be used, also by another replica.
        """
        for hook in self._hooks:
            hook.remove()
        self._show(self.weights)
        for parameter in self.module.parameters():
            if id(parameter) in self._entries:
                unmark(parameter)
        self._torn = True
        return self.module

    @property
    def numel(self) -> int:
        """Number of trainable weights d."""
        return self.layout.numel

    @property
    def biases(self) -> NDArray[np.float64] | None:
        """b, to be added to the labels' scores, float64 [C]; None for a method without biases."""
        return self.method.biases(self.derived, {})

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
        mu: float = 0.0,
        walk: Walk | None = None,
        changes: Mapping[str, float] | None = None,
    ) -> None:
        """Fills the model's parameters with w, or with w + sign · (mu·u)/denom at `point`.

        Args:
            point: Where; None, or a point with sign 0, for w itself.
            mu: Perturbation size.
            walk: Use the w of these local steps instead of the replica's.
            changes: Hyper-parameters that differ from the current ones (for the denominator).
        """
        self.check()
        self._written = _Written(
            point, mu, self._hyper_with(changes), None if walk is None else ref(walk)
        )
        if self._lean:
            return
        if point is None or point.sign == 0:
            self._compute.copy_(self.weights if walk is None else walk.weights)
        else:
            self._perturb(self._compute, range(self.layout.tiles))

    def project(
        self, loss: Callable[[], Any], *, stream: int, directions: int
    ) -> tuple[float, NDArray[np.float64]]:
        """The loss at the last written weights, and its derivatives along z_p = u_p/denom.

        g_p = ⟨∇loss, z_p⟩ for the P directions of that point's round and local step, by one
        backward pass. Products and sums are float64; the gradient has the compute dtype. Besides
        activations, this needs memory for the gradient of one parameter.

        Args:
            loss: Called with gradients enabled; returns a value that `mean_loss` accepts.
            stream: Stream of the directions.
            directions: P.

        Returns:
            The loss, and g float64 [P].

        Raises:
            SettingsError: The replica has lean memory, or the loss has no gradient.
            RuntimeError: The last `write` had no point, or had a perturbation.
        """
        check_backward(self.method, "lean" if self._lean else "full")
        point, _ = self._now_written()
        if point is None or point.sign or self._written is None:
            raise RuntimeError(
                "a gradient is taken at w of a local step: write Point(round, step) first"
            )
        hyper = self._written.hyper
        points = [Point(point.round, point.step, stream, p) for p in range(directions)]
        parts = [np.zeros(directions)]

        def take(parameter: nn.Parameter, gradient: Tensor) -> None:
            v, tiles = gradient.float().reshape(-1), self._entries[id(parameter)].tiles
            parts.append(self._kernels.project(v, self.state, hyper, points, tiles))

        own = [p for p in self.module.parameters() if id(p) in self._entries]
        value = take_gradients(loss, own, take)
        return value, sum_parts(np.stack(parts))

    @contextmanager
    def lend(self) -> Generator[None]:
        """Lets the caller train the module's parameters, starting at w; w itself is unchanged.

        The next `write` overwrites the trained parameters. Not possible with `memory="lean"`,
        where there are no parameters to train.
        """
        self.write()
        try:
            yield
        finally:
            self._written = None
            self._watch.note()

    def rows(self, parameter: nn.Parameter, index: Tensor) -> Tensor:
        """Rows `index` of a parameter as last written, but in float32, computed from w.

        With a half-precision compute dtype this gives the needed rows of the output head in
        float32. A frozen parameter's rows are only cast. Gradients flow to the parameter.

        Raises:
            ValueError: The tensor is not a parameter of the module, or has no such row.
            RuntimeError: Nothing was written since the last replay.
        """
        if id(parameter) not in self._known:
            raise ValueError("rows are taken of the module's own parameters, not of other tensors")
        if self._written is None:
            raise RuntimeError("the model's parameters are older than the replica: call write()")
        entry = self._entries.get(id(parameter))
        count = parameter.shape[0] if entry is None else entry.shape[0]
        wanted = [int(row) for row in index.cpu().numpy()]
        if not all(0 <= row < count for row in wanted):
            raise ValueError(f"rows {wanted} of a parameter with rows 0..{count - 1}")
        if entry is None or (self.dtype == torch.float32 and not self._lean):
            return parameter[index].float()
        width = entry.numel // count
        parts = [
            self._part(entry.offset + run.start * width, len(run) * width, torch.float32)
            for run in runs(wanted)
        ]
        rows = torch.cat(parts).view(len(wanted), *entry.shape[1:])
        if self._lean or not torch.is_grad_enabled():
            return rows
        through = parameter[index].float()
        return rows + (through - through.detach())

    def _parameter(self, entry: Entry) -> Tensor:
        """A whole parameter as last written, in the compute dtype."""
        return self._part(entry.offset, entry.numel, self.dtype).view(entry.shape)

    def _part(self, start: int, count: int, dtype: torch.dtype) -> Tensor:
        """`count` elements of the flat buffer as last written, in a new buffer."""
        point, weights = self._now_written()
        if point is None or point.sign == 0:
            return weights[start : start + count].to(dtype, copy=True)
        tiles = range(start // TILE, -(-(start + count) // TILE))
        out = torch.empty(len(tiles) * TILE, dtype=dtype, device=self.weights.device)
        self._perturb(out, tiles)
        return out[start - tiles.start * TILE :][:count]

    def _perturb(self, out: Tensor, tiles: range) -> None:
        point, weights = self._now_written()
        assert point is not None
        assert self._written is not None
        mu, hyper = point.sign * self._written.mu, self._written.hyper
        self._kernels.perturb(out, weights, self.state, hyper, point, mu, tiles)

    def _now_written(self) -> tuple[Point | None, Tensor]:
        """The point of the last `write`, and the weights from which it was written."""
        written = self._written
        walk = None if written is None or written.walk is None else written.walk()
        if written is None or (written.walk is not None and walk is None):
            raise RuntimeError("the model was written from a walk that is gone: call write()")
        return written.point, self.weights if walk is None else walk.weights

    def _hyper_with(self, changes: Mapping[str, float] | None) -> dict[str, float]:
        unknown = sorted(set(changes or {}) - set(self.hyper))
        if unknown:
            raise ValueError(f"{self.method.name} has no hyper-parameter {', '.join(unknown)}")
        return {**self.hyper, **(changes or {})}

    def check(self) -> None:
        """Checks that the replica is usable, and that only records have changed it.

        Raises:
            ProtocolError: The replica was released, a fold was interrupted, or other code changed
                the weights or the module.
        """
        if self._torn:
            raise ProtocolError(
                "the replica was released, or an interrupted fold left it between two positions: "
                "restore a snapshot, or make a new replica and replay"
            )
        self._watch.check()

    def walk(self, changes: Mapping[str, float] | None = None) -> Walk:
        """Starts local steps from the present weights, with `changes` to the hyper-parameters."""
        self.check()
        return Walk(
            self.weights, self.state, self._hyper_with(changes), self.method, self._kernels.fold
        )

    def replay(self, records: Sequence[Record]) -> None:
        """Folds records in one pass over memory; the position is then after the last record.

        The model's parameters keep their old values until the next `write`. An interrupted replay
        leaves the replica unusable: every later call raises an error.

        Raises:
            ProtocolError: `check_sequence` refuses the records, or other code changed the weights
                or the module. Nothing was folded.
        """
        check_sequence(records, self.position, self.method, self.hyper)
        self.check()
        steps, hyper = pack(self.method, records, self.hyper)
        derived = remember_all(self.method, records, self.derived)
        self._torn, self._digest, self._written = True, None, None
        self._digest = self._kernels.fold(self.weights, self.state, steps)
        self._watch.note_buffers()
        self._torn = False
        self.hyper, self.derived = hyper, derived
        self.position += len(records)
        for record in records:
            self.chain = record.chain(self.chain)

    def digest(self) -> int:
        """64-bit fingerprint of the bits of w, the state and b; equal on every backend."""
        self.check()
        if self._digest is None:
            nothing, _ = pack(self.method, [], self.hyper)
            self._digest = self._kernels.fold(self.weights, self.state, nothing)
            self._watch.note_buffers()
        biases = self.biases
        if biases is None:
            return self._digest
        packed = struct.pack(f"<{len(biases)}d", *biases)
        return self._digest ^ int.from_bytes(hashlib.sha256(packed).digest()[:8], "little")

    def restore(
        self,
        buffers: Mapping[str, Tensor],
        position: int,
        chain: bytes,
        hyper: Mapping[str, float],
        derived: Mapping[str, float] | None = None,
    ) -> None:
        """Sets the replica to the state of a snapshot.

        Args:
            buffers: `weights`, and each state by its name.
            position: Number of records folded in the snapshot.
            chain: Chain hash at this position.
            hyper: Hyper-parameters at this position.
            derived: The method's derived values at this position; by default the initial ones.

        Raises:
            ProtocolError: The buffers do not fit this method and layout.
        """
        mine = {"weights": self.weights, **self.state}
        kinds = [{k: (v.shape, v.dtype) for k, v in some.items()} for some in (mine, buffers)]
        if kinds[0] != kinds[1] or set(hyper) != set(self.hyper):
            raise ProtocolError("the snapshot was taken from another model or method")
        for name, buffer in mine.items():
            buffer.copy_(buffers[name])
        self.position, self.chain, self.hyper = position, chain, dict(hyper)
        self.derived = self.method.derived if derived is None else derived
        self._torn, self._digest, self._written = False, None, None
        self._watch.note()


@dataclass(frozen=True)
class _Written:
    """The arguments of the last `write`."""

    point: Point | None
    mu: float
    hyper: Mapping[str, float]
    walk: ReferenceType[Walk] | None
