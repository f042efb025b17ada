"""Exact derivatives along directions, for clients whose machine can run a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from hiso.core.method.base import Method
from hiso.errors import SettingsError

if TYPE_CHECKING:
    from torch import Tensor, nn

Probing = Literal["forward", "backward"]
"""How a client finds its scalars: by differences of losses, or by one backward pass a local step,
which is the client's own choice."""

BACKWARD_PASSES = 3
"""Forward passes that a forward and a backward pass count as."""


def check_backward(method: Method, memory: str = "full") -> None:
    """Makes sure that a backward pass gives all that a method asks a client for.

    Raises:
        SettingsError: It does not: the method asks for more than derivatives of the mean loss, or
            the replica has no parameters that gradients could flow to.
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
    """The mean of what a loss function returns, a float64 scalar through which gradients flow.

    Args:
        value: A mean loss; losses of the examples [B]; or a pair of scores [B, C] and labels [B],
            from which the cross-entropy is taken.

    Raises:
        SettingsError: It is something else, or no gradient flows through it.
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
    """Gives each parameter's gradient to `take` as soon as it is whole, and drops it; the loss.

    So the gradients of all parameters are never there together. A parameter that the loss does not
    depend on has none.

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
