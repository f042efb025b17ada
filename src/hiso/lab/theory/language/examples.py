"""One backward pass per example of a language model: gradients at some weights, and sketches.

For two label words with logits z₀, z₁ and δ = z₁ − z₀, the loss's gradient is (p₁ − y)·∇δ and the
Gauss–Newton matrix is the mean of p₀p₁·∇δ∇δᵀ: both need only the vector ∇δ of each example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hiso.core.noise.layout import Layout
from hiso.errors import SettingsError
from hiso.lab.theory.curvature.factors import Factors
from hiso.workloads.text.encode import Encoded
from hiso.workloads.text.models import LanguageModel, hidden_states, output_head, shape_logits
from hiso.workloads.text.task import Task
from hiso.workloads.text.verbalizer import check_labels

SKETCH = 2**15

Floats = NDArray[np.float32]


class Margins:
    """δ of single examples.

    Attributes:
        lm: The model, with its present weights.
        words: Token of each label word.
    """

    def __init__(self, lm: LanguageModel, task: Task) -> None:
        """Raises SettingsError unless the task has two label words of one token each."""
        verbalizer = None if task.is_text else check_labels(task, lm.tokenizer)
        if verbalizer is None or verbalizer.mode != "token" or len(verbalizer.first) != 2:
            raise SettingsError(
                f"task {task.name}: this experiment takes tasks of two label words of one token"
            )
        self.lm, self.words = lm, torch.tensor(verbalizer.first)

    def __call__(self, example: Encoded) -> Tensor:
        """δ, a scalar with a gradient."""
        ids = torch.from_numpy(example.ids.astype(np.int64))[None]
        last = hidden_states(self.lm.model, ids)[0, -1].float()
        head = output_head(self.lm.model)
        bias = None if head.bias is None else head.bias[self.words]
        logits = nn.functional.linear(last, head.weight[self.words], bias)  # pyright: ignore[reportArgumentType]
        logits = shape_logits(self.lm.model, logits)
        return logits[1] - logits[0]

    def loss(self, example: Encoded) -> Tensor:
        """Cross-entropy of the label, a scalar."""
        sign = 1 - 2 * int(example.label or 0)
        return nn.functional.softplus(sign * self(example))


@dataclass(frozen=True)
class Sample:
    """The sampled weights: all of the label words' rows, and some of every parameter.

    Attributes:
        places: By parameter, the indices of the drawn weights in it, int64, ascending.
        stands_for: Number of weights that each drawn weight represents, [s].
        label: Whether a drawn weight is in a label word's row, [s].
        embedding: Whether it is in the matrix that contains these rows, [s].
    """

    places: dict[str, NDArray[np.int64]]
    stands_for: NDArray[np.float64]
    label: NDArray[np.bool_]
    embedding: NDArray[np.bool_]

    @classmethod
    def draw(cls, layout: Layout, head: str, words: Sequence[int], size: int) -> Sample:
        """About `size` weights in proportion to each parameter's size, and the label rows.

        Args:
            layout: The replica's layout.
            head: Name of the parameter with the label words' rows.
            words: The numbers of these rows.
            size: Number of weights; at least 64 from every parameter that has as many.
        """
        generator = np.random.Generator(np.random.Philox(0))
        places: dict[str, NDArray[np.int64]] = {}
        stands, label, embedding = [], [], []
        for entry in layout:
            rows = np.zeros(0, np.int64)
            if entry.name == head:
                width = entry.numel // entry.shape[0]
                rows = np.concatenate([np.arange(w * width, (w + 1) * width) for w in words])
            rest = entry.numel - len(rows)
            count = min(rest, max(64, round(size * entry.numel / layout.numel)))
            drawn = generator.choice(
                entry.numel, min(entry.numel, count + len(rows)), replace=False
            )
            drawn = np.setdiff1d(drawn, rows)[:count]
            chosen = np.concatenate([rows, drawn])
            order = np.argsort(chosen)
            in_rows = np.arange(len(chosen)) < len(rows)
            places[entry.name] = chosen[order]
            stands.append(np.where(in_rows, 1.0, rest / max(1, len(drawn)))[order])
            label.append(in_rows[order])
            embedding.append(np.full(len(chosen), entry.name == head))
        return cls(places, *map(np.concatenate, (stands, label, embedding)))

    def of(self, tensors: dict[str, Tensor]) -> Floats:
        """The values at the drawn weights, from whole parameters, float32 [s]."""
        return np.concatenate(
            [
                tensors[name].reshape(-1)[torch.from_numpy(at)].numpy()
                for name, at in self.places.items()
            ]
        )

    def of_flat(self, layout: Layout, buffer: Tensor) -> Floats:
        """The values at the drawn weights, from a replica's flat buffer."""
        return self.of({e.name: buffer[e.offset : e.offset + e.numel] for e in layout})

    def blocks(self) -> dict[str, slice]:
        """By parameter, the slice of its weights among the drawn weights."""
        found: dict[str, slice] = {}
        start = 0
        for name, at in self.places.items():
            found[name] = slice(start, start + len(at))
            start += len(at)
        return found


@dataclass(frozen=True)
class Slopes:
    """∇δ of N examples.

    Attributes:
        drawn: At the sample's weights, float32 [N, s].
        sketch: Signed sums over all weights, float32 [N, SKETCH]: their dot products are unbiased
            estimates of those of whole gradients, with an error of about |a||b|/√SKETCH.
        norms: ‖∇δ‖², float64 [N].
        label_norms: The part of ‖∇δ‖² in the label words' rows, [N].
        margin: δ, [N].
        label: y, [N].
    """

    drawn: Floats
    sketch: Floats
    norms: NDArray[np.float64]
    label_norms: NDArray[np.float64]
    margin: NDArray[np.float64]
    label: NDArray[np.int64]

    @property
    def p(self) -> NDArray[np.float64]:
        """p₁, [N]."""
        return 1 / (1 + np.exp(-self.margin))

    @property
    def residual(self) -> NDArray[np.float64]:
        """p₁ − y, [N]."""
        return self.p - self.label

    @property
    def bend(self) -> NDArray[np.float64]:
        """p₀p₁, [N]."""
        return self.p * (1 - self.p)

    def factors(self, stands_for: NDArray[np.float64]) -> Factors:
        """Gradients and Gauss–Newton factors at the drawn weights."""
        gradients = self.drawn * self.residual[:, None].astype(np.float32)
        rows = self.drawn * np.sqrt(self.bend)[:, None].astype(np.float32)
        return Factors(gradients, rows[:, None], stands_for)

    def dots(self) -> NDArray[np.float64]:
        """∇δ_n·∇δ_m, [N, N]; exact on the diagonal."""
        found = (self.sketch @ self.sketch.T).astype(np.float64)
        np.fill_diagonal(found, self.norms)
        return found

    @classmethod
    def join(cls, parts: Sequence[Slopes]) -> Slopes:
        """All examples of several parts."""
        names = ("drawn", "sketch", "norms", "label_norms", "margin", "label")
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def measure_slopes(margins: Margins, sample: Sample, examples: Sequence[Encoded]) -> Slopes:
    """One backward pass for each example, at the model's present weights."""
    named = {n: p for n, p in margins.lm.model.named_parameters() if n in sample.places}
    signs = _signs({name: parameter.numel() for name, parameter in named.items()})
    rows: list[tuple[Floats, Floats, float, float, float, int]] = []
    for example in examples:
        margin = margins(example)
        gradients = dict(zip(named, torch.autograd.grad(margin, list(named.values())), strict=True))
        drawn = sample.of(gradients)
        norm = sum(float(g.reshape(-1).dot(g.reshape(-1))) for g in gradients.values())
        of_labels = float((drawn[sample.label].astype(np.float64) ** 2).sum())
        sketch = _sketch(gradients, signs)
        rows.append(
            (drawn, sketch, norm, of_labels, float(margin.detach()), int(example.label or 0))
        )
    columns = zip(*rows, strict=True)
    return Slopes(*(np.array(column) for column in columns))  # pyright: ignore[reportArgumentType]


def _signs(sizes: dict[str, int]) -> dict[str, Tensor]:
    """A random sign for every weight, int8."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: 2 * torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8) - 1
        for name, size in sizes.items()
    }


def _sketch(gradients: dict[str, Tensor], signs: dict[str, Tensor]) -> Floats:
    """Adds weight j, with its sign, to bucket j mod SKETCH."""
    total, start = torch.zeros(SKETCH), 0
    for name, gradient in gradients.items():
        signed = gradient.reshape(-1) * signs[name]
        before = start % SKETCH
        after = -(before + len(signed)) % SKETCH
        total += nn.functional.pad(signed, (before, after)).view(-1, SKETCH).sum(0)
        start += len(signed)
    return total.numpy()
