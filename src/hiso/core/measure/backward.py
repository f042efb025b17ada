"""Exact derivatives along directions, for clients whose machines can run a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from hiso.core.method.base import Method
from hiso.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor, nn

Probing = Literal["forward", "backward"]
"""How a client computes its scalars: by differences of losses, or by one backward pass per local
step. Each client chooses for itself."""

BACKWARD_PASSES = 3
"""A forward and a backward pass together count as this many forward passes."""


def check_backward(method: Method, memory: str = "full") -> None:
    """Checks that a backward pass gives everything that a method needs from a client.

    Raises:
        SettingsError: The method needs more than derivatives of the mean loss, or the replica
            (with lean memory) has no parameters for gradients.
    """
    problem = None
    if method.needs == "scores":
        problem = f"{method.name} makes its scalars from what the forward passes of each direction "
        problem += "say of every example" + (", as lr = auto does" if method.auto else "")
    elif method.measures_curvature:
        problem = f"{method.name} asks for a curvature along each direction, a difference of losses"
    elif memory != "full":
        problem = "with lean memory, parameters are gone when their gradients are wanted"
    if problem is not None:
        raise SettingsError(f"no client can answer by a backward pass: {problem}")


def mean_loss(value: Any) -> Tensor:
    """The mean of a loss function's result, a float64 scalar with a gradient.

    Args:
        value: A mean loss; losses of the examples [B]; or a pair of scores [B, C] and labels [B],
            from which the cross-entropy is taken.

    Raises:
        SettingsError: The value is something else, or has no gradient.
    """
    from torch import Tensor, as_tensor
    from torch.nn.functional import cross_entropy

    if isinstance(value, tuple):
        scores, labels = map(as_tensor, cast("tuple[Any, Any]", value))
        value = cross_entropy(scores.float(), labels.to(scores.device).long(), reduction="none")
    if not isinstance(value, Tensor) or value.ndim > 1 or not value.requires_grad:
        raise SettingsError(
            "a backward pass needs a loss function that returns a tensor through which gradients "
            "flow: a mean loss, losses [B], or a pair of scores [B, C] and labels [B]"
        )
    return value.double().mean()


def take_gradients(
    loss: Callable[[], Any],
    parameters: Sequence[nn.Parameter],
    take: Callable[[nn.Parameter, Tensor], None],
) -> float:
    """Passes each parameter's complete gradient to `take`, then frees it; returns the loss.

    So the gradients of all parameters are never in memory together. A parameter on which the loss
    does not depend has no gradient.

    Raises:
        SettingsError: As `mean_loss`.
    """
    import torch

    def hook(parameter: Tensor) -> None:
        assert parameter.grad is not None
        take(parameter, parameter.grad)  # pyright: ignore[reportArgumentType]
        parameter.grad = None

    known: list[Any] = list(parameters)
    for parameter in known:
        parameter.grad = None
    listening = [parameter.register_post_accumulate_grad_hook(hook) for parameter in known]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            value: Any = mean_loss(loss())
            value.backward(inputs=known)
    finally:
        for each in listening:
            each.remove()
    return float(value.detach())
