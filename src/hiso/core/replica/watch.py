"""Detects changes of a replica's module or weights by other code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from hiso.errors import ProtocolError

_SHOWN = 3


class Watch:
    """Compares a module and the replica's buffers with their state after the replica's last use.

    Detects a parameter that was replaced, moved, cast, or written in place; a buffer that was
    written in place; and a module in training mode. Does not detect writes through `.data`, NumPy
    or a raw pointer: torch does not count such writes.
    """

    def __init__(self, module: nn.Module, buffers: Iterable[Tensor]) -> None:
        self._module, self._buffers = module, list(buffers)
        self.note()

    def note(self) -> None:
        """Records the present state as written by the replica itself."""
        self._left = {name: (p, _place(p), _writes(p)) for name, p in _parameters(self._module)}
        self.note_buffers()

    def note_buffers(self) -> None:
        """Records the present state of the buffers only."""
        self._written = [_writes(buffer) for buffer in self._buffers]

    def check(self) -> None:
        """Checks that no other code has changed anything.

        Raises:
            ProtocolError: Other code changed something; the message says what, and what to do.
        """
        found = list(self._problems())
        if found:
            more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise ProtocolError(
                f"other code changed the model or the weights of the replica: "
                f"{'; '.join(found[:_SHOWN])}{more}. Only records may change them. To use the "
                "trained weights elsewhere, call release() first; to continue this run, make a "
                "new Replica on a fresh copy of the model and replay the log"
            )

    def _problems(self) -> Iterator[str]:
        if any(part.training for part in self._module.modules()):
            raise ProtocolError(
                "the model is in training mode, where dropout makes losses random: call eval() "
                "on it and continue"
            )
        if [_writes(buffer) for buffer in self._buffers] != self._written:
            yield "the replica's weights or state were written"
        now = dict(_parameters(self._module))
        for name, (parameter, place, writes) in self._left.items():
            if now.get(name) is not parameter:
                yield f"{name} was replaced"
            elif _place(parameter) != place:
                yield f"{name} was moved or cast"
            elif None not in (writes, _writes(parameter)) and _writes(parameter) != writes:
                yield f"{name} was written"
        yield from (f"{name} was added" for name in now.keys() - self._left.keys())


def _parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return module.named_parameters(remove_duplicate=False)


def _place(parameter: nn.Parameter) -> tuple[object, ...]:
    return parameter.data_ptr(), parameter.dtype, tuple(parameter.shape)


def _writes(tensor: Tensor) -> int | None:
    """The number of in-place writes counted by torch; None for a tensor made in inference mode."""
    return None if tensor.is_inference() else tensor._version
