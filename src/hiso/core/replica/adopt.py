"""Finds the parameters of a module that a replica takes over, and refuses unsuitable ones."""

from __future__ import annotations

from torch import Tensor, nn

from hiso.errors import SettingsError

_MARK = "_belongs_to_a_hiso_replica"


def find_trainable(module: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The trainable parameters of a module by name; tied parameters under the name of the first.

    Parameters are tied if they are the same object, or have the same memory address and shape.

    Raises:
        SettingsError: There are no trainable parameters; or one of them does not hold real
            floating-point numbers, is on another device than a CPU or a CUDA GPU, already belongs
            to a replica, or shares memory with another tensor in another way.
    """
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    problems = [text for name, p in trainable.items() if (text := _problem(name, p))]
    devices = sorted({str(p.device) for p in trainable.values()})
    if len(devices) > 1:
        problems.append(f"the parameters are on {', '.join(devices)}: move them to one device")
    if not trainable:
        problems = ["there is no trainable parameter (none has requires_grad=True)"]
    if problems:
        raise SettingsError("; ".join(problems))
    groups: dict[object, list[str]] = {}
    for name, parameter in trainable.items():
        place = parameter.data_ptr() if parameter.numel() else name
        key = (place, parameter.shape, parameter.stride(), parameter.dtype)
        groups.setdefault(key, []).append(name)
    firsts = {names[0]: trainable[names[0]] for names in groups.values()}
    _check_overlap(module, trainable, firsts)
    return {names[0]: [trainable[name] for name in names] for names in groups.values()}


def mark(parameter: nn.Parameter) -> None:
    """Marks a parameter as belonging to a replica."""
    setattr(parameter, _MARK, True)


def unmark(parameter: nn.Parameter) -> None:
    """Marks a parameter as belonging to no replica."""
    delattr(parameter, _MARK)


def _problem(name: str, parameter: nn.Parameter) -> str | None:
    if hasattr(parameter, _MARK):
        return f"{name} belongs to another replica: load or copy the model again"
    if parameter.device.type not in ("cpu", "cuda"):
        return f"{name} is on {parameter.device}: kernels run on the CPU and on CUDA GPUs"
    if not parameter.is_floating_point():
        return f"{name} is {parameter.dtype}: only real floating-point numbers can be trained"
    if any(n > 1 and s == 0 for n, s in zip(parameter.shape, parameter.stride(), strict=True)):
        return f"{name} is an expanded view, whose rows are one: make it contiguous"
    return None


def _check_overlap(
    module: nn.Module, trainable: dict[str, nn.Parameter], firsts: dict[str, nn.Parameter]
) -> None:
    """Checks that only tied parameters share memory with a trainable parameter."""
    known = {id(p) for p in trainable.values()}
    everything: dict[str, Tensor] = dict(module.named_parameters()) | dict(module.named_buffers())
    spans = [
        (*_span(tensor), name)
        for name, tensor in everything.items()
        if tensor.numel() and (name in firsts or id(tensor) not in known)
    ]
    reach: dict[bool, tuple[int, str]] = {True: (0, ""), False: (0, "")}
    for start, stop, name in sorted(spans):
        mine = name in firsts
        for theirs, (end, other) in reach.items():
            if start < end and (mine or theirs):
                raise SettingsError(
                    f"{other} and {name} share memory without being the same parameter: a replica "
                    "would take them apart. Make them one nn.Parameter, or clone one of them"
                )
        reach[mine] = max(reach[mine], (stop, name))


def _span(tensor: Tensor) -> tuple[int, int]:
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
