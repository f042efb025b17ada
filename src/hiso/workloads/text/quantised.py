"""Keeps the frozen linear layers of a model in 8 or 4 bits, by bitsandbytes."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from typing import Any, Literal

import torch
from torch import nn

from hiso.errors import LoadError, SettingsError
from hiso.workloads.text.models import LanguageModel, output_head

Kind = Literal["int8", "nf4"]
_BLOCK = 64
"""bitsandbytes' kernels for 4 bits need whole blocks of weights in a row."""


def quantise(lm: LanguageModel, kind: Kind, compute: torch.dtype) -> None:
    """Replaces the frozen linear layers of a model by quantised ones, in place.

    int8: 8 bits, with a scale for each row (LLM.int8). nf4: 4 bits, with a scale for each block of
    64 weights. Embeddings, norms, the output head, layers whose number of inputs is no multiple of
    64, and everything trained keep their precision. Adapters stay on top of the quantised layers.

    Args:
        lm: The model, float32 on the CPU, in which everything frozen is marked already.
        kind: The format of the weights.
        compute: The precision of forward passes.

    Raises:
        LoadError: bitsandbytes is not installed.
        SettingsError: The model has no such layer.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise LoadError(f"frozen = {kind} needs bitsandbytes. Run: pip install 'hiso[bits]'")
    head = output_head(lm.model) if lm.classes is None else None
    frozen = [
        (name, layer)
        for name, layer in lm.model.named_modules()
        if type(layer) is nn.Linear and layer is not head and not layer.weight.requires_grad
        if layer.in_features % _BLOCK == 0
    ]
    if not frozen:
        raise SettingsError(
            f"frozen = {kind}: {lm.name} has no frozen linear layer with a multiple of {_BLOCK} "
            "inputs. Set frozen = dtype, or train less of the model"
        )
    with warnings.catch_warnings():  # on import: what bitsandbytes cannot do on this machine
        warnings.simplefilter("ignore")
        bnb = importlib.import_module("bitsandbytes")
    for name, layer in frozen:
        lm.model.set_submodule(name, _quantised(bnb, layer, kind, compute))


def _quantised(bnb: Any, layer: nn.Linear, kind: Kind, compute: torch.dtype) -> nn.Module:
    shape, biased = (layer.in_features, layer.out_features), layer.bias is not None
    weight: Any
    if kind == "int8":
        made: Any = bnb.nn.Linear8bitLt(*shape, bias=biased, has_fp16_weights=False)
        weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        made = bnb.nn.Linear4bit(*shape, bias=biased, compute_dtype=compute, quant_type="nf4")
        weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    made.weight = weight
    if biased:
        made.bias = layer.bias
    made.support_avx512bf16_for_cpu = False  # its kernel rounds everything to bfloat16
    return made.to("cpu")  # quantises
