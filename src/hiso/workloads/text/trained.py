"""Freezes the parameters that a choice does not train, and adds PEFT adapters.

An adapter is added to the model itself, whose class does not change. Its initial weights are a
function of the run's seed: LoRA's A is uniform in ±1/√(inputs), PEFT's own rule, drawn from (seed,
number of the layer); B is 0, and IA3's factors are 1. torch's random state is not changed.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.numpy import save_file
from torch import nn

from hiso.core.keys import raw_bits
from hiso.errors import LoadError, SettingsError
from hiso.workloads.text.choice import ALPHA, RANK, Choice
from hiso.workloads.text.models import LanguageModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # PEFT imports it, and it is talkative
_ADAPTER = "default"
_ALL = "all-linear"
"""PEFT's word for all linear layers except the output head."""


def choose(lm: LanguageModel, choice: Choice, seed: int) -> Choice:
    """Adds adapters, if chosen, and freezes all parameters that are not trained.

    A classification head is always trained too, except with "regex:PATTERN". The model must be on
    the CPU.

    Args:
        lm: The model, which is changed.
        choice: The trained parameters; for "full" nothing is done.
        seed: The run's seed, for the initial weights of adapters.

    Returns:
        The choice, with the layers that now have adapters.

    Raises:
        SettingsError: The model has no such parameters, or its output head is its embedding.
        LoadError: PEFT is not installed.
    """
    if choice.full:
        return choice
    model = lm.model
    if choice.adapts:
        choice = _add_adapters(lm, choice, seed)
    wanted = {id(parameter) for parameter in _wanted(lm, choice)}
    if lm.classes is not None and choice.pattern is None:
        wanted |= {id(parameter) for parameter in _beyond_base(model)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    return choice


def finish(model: nn.Module, choice: Choice) -> None:
    """Makes an ordinary model again: merges adapters, and unfreezes all parameters.

    torch computes the merged weights, W + alpha/rank · B·A: their last bits may differ between
    machines.
    """
    if choice.full:
        return
    if choice.adapts:
        for name, layer in _adapted(model):
            layer.merge()
            model.set_submodule(name, layer.get_base_layer())
        del model.peft_config  # pyright: ignore[reportAttributeAccessIssue]
    model.requires_grad_(True)


def save_peft(model: PreTrainedModel, folder: Path, base: str | None) -> None:
    """Writes the adapters of a model for `peft.PeftModel.from_pretrained`.

    A trained head is in `modules_to_save`. Weights are float32.

    Args:
        model: A model to which `choose` has added adapters.
        folder: An empty folder.
        base: Name of the base model on Hugging Face; None if it has no such name.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    arrays = {
        f"base_model.model.{name.replace(f'.{_ADAPTER}', '')}": p.detach().cpu().numpy()
        for name, p in trained
    }
    save_file(arrays, folder / "adapter_model.safetensors", {"format": "pt"})
    heads = {name.partition(".")[0] for name, _ in trained} - {model.base_model_prefix}
    config = copy.copy(_peft_config(model))
    config.modules_to_save = sorted(heads) or None
    for name in ("target_modules", "feedforward_modules"):
        if isinstance(found := getattr(config, name, None), set):
            setattr(config, name, sorted(found))
    config.base_model_name_or_path, config.inference_mode = base, True
    config.save_pretrained(str(folder))


def _peft_config(model: PreTrainedModel) -> Any:
    return model.peft_config[_ADAPTER]  # pyright: ignore[reportIndexIssue]


def _wanted(lm: LanguageModel, choice: Choice) -> list[nn.Parameter]:
    """The parameters of a kind; a tied parameter matches by any of its names.

    Raises:
        SettingsError: There are no such parameters.
    """
    model = lm.model
    named = dict(model.named_parameters(remove_duplicate=False))
    if choice.pattern is not None:
        pattern = re.compile(choice.pattern)
        found = [parameter for name, parameter in named.items() if pattern.search(name)]
    elif choice.last is not None:
        found = [p for block in _last_blocks(lm, choice.last) for p in block.parameters()]
    elif choice.kind == "bias":
        found = [parameter for name, parameter in named.items() if name.endswith("bias")]
    elif choice.kind == "norm":
        norms = [m for m in model.modules() if "norm" in type(m).__name__.lower()]
        found = [parameter for norm in norms for parameter in norm.parameters(recurse=False)]
    elif choice.kind == "head":
        found = _beyond_base(model)
    else:
        found = [p for _, layer in _adapted(model) for p in _adapter_weights(layer)]
    if not found:
        raise SettingsError(f"train = {choice.kind}: {_absent(lm, choice, named)}")
    return found


def _absent(lm: LanguageModel, choice: Choice, names: Iterable[str]) -> str:
    """A text that says why a model has no parameters of a kind, and what to do."""
    if choice.kind == "head":
        weight: Any = lm.model.get_input_embeddings().weight
        name = next(n for n, p in lm.model.named_parameters() if p is weight)
        return (
            f"the output head of {lm.name} is its input embedding ({weight.numel():,} weights): "
            "training it changes what every token goes in as. To do so nevertheless, set train = "
            f"'regex:{re.escape(name)}'; last-1 or norm are small choices"
        )
    *_, example = names
    return f"no parameter of {lm.name} is one. Their names are like {example}"


def _beyond_base(model: PreTrainedModel) -> list[nn.Parameter]:
    """The parameters that are not in the base model: those of an untied head."""
    inside = {id(parameter) for parameter in model.base_model.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in inside]


def _last_blocks(lm: LanguageModel, count: int) -> list[nn.Module]:
    depth = getattr(lm.model.config, "num_hidden_layers", None)
    lists = [m for m in lm.model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not lists or count > len(lists[0]):
        raise SettingsError(
            f"train = last-{count}: {lm.name} has {depth or 'no known number of'} blocks"
        )
    return list(lists[0])[-count:]


def _add_adapters(lm: LanguageModel, choice: Choice, seed: int) -> Choice:
    """Adds adapters with hiso's initial weights to the model; returns the choice with its layers.

    Raises:
        SettingsError: There are no such layers, or a layer cannot have an adapter.
        LoadError: PEFT is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise LoadError(f"train = {choice.kind} needs PEFT. Run: pip install 'hiso[lora]'")
    import peft

    try:
        with torch.random.fork_rng(devices=[]):
            peft.inject_adapter_in_model(_config(lm, choice), lm.model)
    except ValueError as error:
        raise SettingsError(
            f"train = {choice.kind}: PEFT says: {error}. For lora, lora_targets names the layers. "
            f"{_linear(lm)}"
        ) from error
    adapted = _adapted(lm.model)
    _check_layers(lm, choice, adapted)
    if choice.kind == "lora":
        for number, (_, layer) in enumerate(adapted):
            _initialise(layer.lora_A[_ADAPTER].weight, seed, number)
    return replace(choice, targets=tuple(sorted(_peft_config(lm.model).target_modules)))


def _config(lm: LanguageModel, choice: Choice) -> Any:
    """PEFT's configuration. IA3 always uses PEFT's default layers for the architecture."""
    import peft
    from transformers.pytorch_utils import Conv1D

    common: dict[str, Any] = {
        "task_type": "CAUSAL_LM" if lm.classes is None else "SEQ_CLS",
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in lm.model.modules()),
    }
    if choice.kind == "ia3":
        return peft.IA3Config(**common)
    targets: Any = choice.targets if choice.targets is None else list(choice.targets)
    named = _ALL if targets == [_ALL] else targets
    return peft.LoraConfig(
        r=choice.rank or RANK, lora_alpha=choice.alpha or ALPHA, target_modules=named, **common
    )


def _check_layers(lm: LanguageModel, choice: Choice, adapted: Sequence[tuple[str, Any]]) -> None:
    if isinstance(_peft_config(lm.model).target_modules, str):
        raise SettingsError(
            f"train = {choice.kind}: PEFT has a pattern and no names for {lm.name}: name the "
            f"layers in lora_targets. {_linear(lm)}"
        )
    names = [name for name, _ in adapted]
    inside = f"{lm.model.base_model_prefix}."
    if outside := [name for name in names if not name.startswith(inside)]:
        raise SettingsError(
            f"lora_targets: {', '.join(outside)} is the output head, whose weights hiso reads "
            f"itself: leave it away. {_linear(lm)}"
        )
    if odd := [name for name, layer in adapted if not _adapter_weights(layer)]:
        raise SettingsError(f"lora_targets: {odd[0]} is no linear layer. {_linear(lm)}")
    asked = () if choice.kind == "ia3" or choice.targets == (_ALL,) else choice.targets or ()
    for target in asked:
        if not any(f".{name}".endswith(f".{target}") for name in names):
            raise SettingsError(f"lora_targets: no layer is called {target}. {_linear(lm)}")


def _initialise(a: nn.Parameter, seed: int, number: int) -> None:
    bits = raw_bits(seed, "lora", (number,), a.numel())
    uniform = torch.from_numpy(bits / 2.0**64).view(a.shape)
    a.data.copy_((2 * uniform - 1) / math.sqrt(a.shape[1]))


def adapter_layers(model: nn.Module) -> list[nn.Linear]:
    """The A and B of all LoRA adapters of a model; empty if it has none."""
    if importlib.util.find_spec("peft") is None:
        return []
    from peft.tuners.lora import LoraLayer

    layers = [layer for _, layer in _adapted(model) if isinstance(layer, LoraLayer)]
    parts: list[Any] = [part[_ADAPTER] for la in layers for part in (la.lora_A, la.lora_B)]
    return parts


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    """The layers with adapters, by name, in the model's order."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [(name, m) for name, m in model.named_modules() if isinstance(m, BaseTunerLayer)]


def _adapter_weights(layer: Any) -> list[nn.Parameter]:
    """The weights of a layer's adapter; empty if the layer is an embedding."""
    own = [name for name in layer.adapter_layer_names if "embedding" not in name]
    return [p for name in own for p in getattr(layer, name).parameters()]


def _linear(lm: LanguageModel) -> str:
    """A sentence with the possible names of targets."""
    from transformers.pytorch_utils import Conv1D

    inside = lm.model.base_model.named_modules()
    names = {n.rpartition(".")[2] for n, m in inside if isinstance(m, nn.Linear | Conv1D)}
    names -= {"base_layer", _ADAPTER}
    return f"The linear layers of {lm.name} are called {', '.join(sorted(names))}"
