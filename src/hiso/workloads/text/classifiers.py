"""Models with a classification head, and their scores.

Such a model may attend to all positions, so its inputs are texts with the tokenizer's special
tokens, padded on the right, with an attention mask. Its last linear layer, here called the head,
gives the scores. When the model is loaded, hiso checks that the scores do not depend on padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hiso.errors import LoadError
from hiso.workloads.text.verbalizer import frame, tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAKE = """  torch.manual_seed(0)
  model = AutoModelForSequenceClassification.from_pretrained({name!r}, num_labels=2)
  model.save_pretrained("with-head")
  AutoTokenizer.from_pretrained({name!r}).save_pretrained("with-head")"""
"""How to give a model a classification head, once, so that all copies have the same head."""

_SENTENCE = "The quick brown fox jumps over the lazy dog."


def has_classes(names: Iterable[str] | None) -> bool:
    """Whether the names of architectures are those of a model with a classification head."""
    return any(name.endswith("ForSequenceClassification") for name in names or ())


def check_loaded(missing: Iterable[str], name: str) -> None:
    """Checks that all weights were in the files of a classifier, so none was initialised at random.

    Args:
        missing: Names of the weights that were missing.
        name: The model's name.

    Raises:
        LoadError: Some weights were missing.
    """
    if found := sorted(missing):
        raise LoadError(
            f"{name} is a classifier by its configuration, but its files have no weights for "
            f"{', '.join(found)}: "
            "transformers would initialise them differently each time. Create them once, with "
            "num_labels equal to the number of labels of the task, and use the new folder:\n"
            f"{MAKE.format(name=name)}"
        )


def class_scores(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """The model's own scores of the classes.

    Args:
        model: A model with a classification head.
        ids: Token ids padded on the right, int64 [B, T].
        mask: 1 where there is a token and 0 on padding, int64 [B, T].

    Returns:
        [B, C]: float32 within `float32_head`, otherwise in the model's dtype.
    """
    known = inspect.signature(model.forward).parameters
    more = {"use_cache": False} if "use_cache" in known else {}
    return model(input_ids=ids, attention_mask=mask, **more).logits


@contextmanager
def float32_head(head: nn.Linear, rows: Callable[[nn.Parameter, Tensor], Tensor]) -> Iterator[None]:
    """Lets a head compute in float32, for any dtype of the model.

    Args:
        head: The linear layer.
        rows: Returns rows of the head's weight or bias, by row numbers, in float32.
    """

    def replace(_: Any, inputs: tuple[Tensor, ...], __: Any) -> Tensor:
        wanted = torch.arange(head.out_features, device=inputs[0].device)
        parameters = dict(head.named_parameters())
        found = {name: rows(parameter, wanted) for name, parameter in parameters.items()}
        return nn.functional.linear(inputs[0].float(), found["weight"], found.get("bias"))

    hook = head.register_forward_hook(replace)
    try:
        yield
    finally:
        hook.remove()


@torch.inference_mode()
def find_head(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """The name of the linear layer whose outputs are the scores.

    Raises:
        LoadError: There is no such layer, or padding changes the scores.
    """
    unsupported = f"the architecture of {name} ({type(model).__name__}) is not supported yet: "
    before, after = frame(tokenizer)
    body = tokens(tokenizer, _SENTENCE)
    text, longer = before + body + after, before + (body * 2)[: len(body) + 3] + after
    pad: Any = model.config.pad_token_id
    padding = [pad] * (len(longer) - len(text))
    mask = torch.ones((2, len(longer)), dtype=torch.int64)
    mask[0, len(text) :] = 0
    try:
        with _outputs(model) as found:
            alone = class_scores(model, torch.tensor([text]), mask[:1, : len(text)])[0]
            outputs = dict(found)
        beside = class_scores(model, torch.tensor([text + padding, longer]), mask)[0]
    except (AttributeError, IndexError, TypeError, RuntimeError, ValueError) as error:
        raise LoadError(f"{unsupported}{error}") from error
    if not torch.allclose(beside, alone, rtol=1e-3, atol=1e-3 * float(alone.abs().max())):
        raise LoadError(f"{unsupported}padding changes its scores.")
    heads = [
        layer
        for layer, output in outputs.items()
        if (output.reshape(-1, len(alone)) == alone).all(1).any()
    ]
    if not heads:
        raise LoadError(f"{unsupported}its scores are not those of a linear layer.")
    return heads[-1]


@contextmanager
def _outputs(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """The outputs, by name, of all linear layers with as many outputs as there are classes."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Tensor) -> None:
            found[name] = output

        return hook

    hooks = [
        layer.register_forward_hook(keep(name))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and layer.out_features == model.config.num_labels
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
