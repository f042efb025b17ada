"""Rules in the linearised model of a language model: a round in a millisecond.

python experiments/margins.py margins.npz 700
python experiments/linearised.py margins.npz auto 2 5     # lr = auto against rates, m = 2, P = 5
python experiments/linearised.py margins.npz helps 5 16   # what else may help, P = 5, B = 16
python experiments/linearised.py margins.npz sets 5 16    # directions within blocks and masks

A random direction moves all margins z by a draw from N(0, K), K being the Gram matrix of their
gradients; a step along it moves them on. So a run of 6 clients is a few small matrix products. What
it leaves out: features that learn, and the noise of half precision.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CLIENTS = 6
RATES = 1e-4 * 1.6 ** np.arange(-2, 10)
NOISE: dict[str, Callable[[int], float]] = {"32/n": lambda _: 32, "160/(P n)": lambda p: 160 / p}


def sigmoid(z: Floats) -> Floats:
    """1 / (1 + e^−z)."""
    return 1 / (1 + np.exp(-np.clip(z, -40, 40)))


@dataclass(frozen=True)
class Model:
    """Margins, labels, and a root of K; the first nine fourteenths are for training."""

    z: Floats
    y: Floats
    root: Floats

    @classmethod
    def of(cls, gram: Floats, z: Floats, y: Floats) -> Model:
        """From K."""
        values, vectors = np.linalg.eigh(gram)
        return cls(z, y.astype(float), vectors * np.sqrt(np.maximum(values, 0)))

    @property
    def train(self) -> int:
        """How many sentences are trained on."""
        return round(len(self.y) * 9 / 14)

    def losses(self, z: Floats) -> tuple[float, float]:
        """Of training and of test sentences."""
        each = np.logaddexp(0, z) - self.y * z
        return float(each[: self.train].mean()), float(each[self.train :].mean())

    def shards(self, draw: np.random.Generator, alpha: float) -> list[NDArray]:
        """By a Dirichlet distribution over clients for each label; alpha 0 is IID."""
        order = draw.permutation(self.train)
        if not alpha:
            return [order[i::CLIENTS] for i in range(CLIENTS)]
        parts: list[list[int]] = [[] for _ in range(CLIENTS)]
        for label in (0, 1):
            rows = order[self.y[order] == label]
            cuts = (draw.dirichlet([alpha] * CLIENTS).cumsum() * len(rows)).astype(int)[:-1]
            for part, some in zip(parts, np.split(rows, cuts), strict=True):
                part += list(some)
        return [np.array(part) if len(part) >= 4 else order[:8] for part in parts]


def zo_sgd(model: Model, m: int, p: int, size: int, alpha: float, seed: int, rounds: int) -> Floats:
    """Training losses [rounds + 1, rates + rules] of fixed rates, then of lr = auto."""
    draw = np.random.default_rng(seed)
    shards, n = model.shards(draw, alpha), model.train
    root, y, rates = model.root[:n], model.y[:n], len(RATES)
    z = np.repeat(model.z[None, :n], rates + len(NOISE), 0)
    c, found = np.zeros(len(NOISE)), [np.mean(np.logaddexp(0, z) - y * z, 1)]
    for _ in range(rounds):
        clients = draw.choice(CLIENTS, m, replace=False)
        u = root @ draw.standard_normal((root.shape[1], p))
        mean, t = np.zeros((len(z), p)), np.zeros(len(NOISE))
        for client in clients:
            shard = shards[client]
            rows = draw.choice(shard, min(size, len(shard)), replace=False)
            prob = sigmoid(z[:, rows])
            g = (prob - y[rows]) @ u[rows] / len(rows)
            mean += g / m
            along = g @ u[rows].T
            fisher = np.mean(((prob - y[rows]) * along) ** 2, 1)
            most = np.maximum(np.mean(prob * (1 - prob) * along**2, 1), fisher)
            t += (most / np.maximum(np.sum(g * g, 1), 1e-30))[rates:] / m
        used = np.where(c > 0, c, t)
        signal = [1 + rule(p) / (m * size) for rule in NOISE.values()]
        c = np.where(c > 0, 0.9 * c + 0.1 * t, t)
        lr = np.append(RATES, 0.5 * p / (used * signal))
        z = np.clip(z - lr[:, None] * (mean / p) @ u.T, -1e5, 1e5)
        found.append(np.mean(np.logaddexp(0, z) - y * z, 1))
    return np.array(found)


def first(losses: Floats, target: float) -> int | None:
    """The first of two rounds in a row at the target."""
    held = (losses[:-1] <= target) & (losses[1:] <= target)
    return int(held.argmax()) if held.any() else None


def diverged(losses: Floats) -> bool:
    """Ends above its start, or was twice as high."""
    return bool(losses[-1] > 1.05 * losses[0] or losses.max() > 2 * losses[0])


def auto(model: Model, m: int, p: int) -> None:
    """One JSON object a setting: rounds to the loss of the best rate after 100 rounds."""
    for size, alpha in itertools.product((8, 16, 64), (0, 0.3)):
        runs = np.array([zo_sgd(model, m, p, size, alpha, seed, 200) for seed in range(5)])
        ends = runs[:, 100].mean(0)
        best = int(np.argmin(ends[: len(RATES)]))
        columns = {"best": best, **{rule: len(RATES) + i for i, rule in enumerate(NOISE)}}
        row: dict[str, object] = {"m": m, "P": p, "B": size, "alpha": alpha, "lr": RATES[best]}
        for name, column in columns.items():
            rounds = [first(run[:, column], ends[best]) for run in runs]
            exploded = sum(diverged(run[:, column]) for run in runs)
            row[name] = {"rounds": rounds, "loss": ends[column], "diverged": exploded}
        print(json.dumps(row), flush=True)


@dataclass(frozen=True)
class Rule:
    """A variant of `subspace_newton`."""

    gain: Callable[[int], float] = lambda _: 1.0
    batch: Callable[[int], float] = lambda _: 1.0
    more: int = 0
    memory: tuple[float, ...] = ()
    mean: int = 1


HELPS = {
    "as it is": Rule(),
    "gain 1/√(1 + r/10)": Rule(gain=lambda r: (1 + r / 10) ** -0.5),
    "gain 1/√(1 + r/40)": Rule(gain=lambda r: (1 + r / 40) ** -0.5),
    "gain 1/(1 + r/40)": Rule(gain=lambda r: 1 / (1 + r / 40)),
    "weights of the last 10 rounds": Rule(mean=10),
    "weights of the last 40 rounds": Rule(mean=40),
    "batch times 1 + r/40": Rule(batch=lambda r: 1 + r / 40),
    "batch times 2": Rule(batch=lambda _: 2),
    "previous step for a direction": Rule(memory=(0.0,)),
    "long run (0.98) for a direction": Rule(memory=(0.98,)),
    "both for two directions": Rule(memory=(0.0, 0.98)),
    "previous step as well": Rule(memory=(0.0,), more=1),
    "one direction more": Rule(more=1),
}


def newton(
    model: Model, rule: Rule, p: int, batch: int, seed: int, m: int = 2, rounds: int = 160
) -> list[tuple[float, float]]:
    """Training and test losses after 20, 40, 80 and 160 rounds; two clients of six a round."""
    draw = np.random.default_rng(seed)
    shards, z, c, found = model.shards(draw, 0), model.z, 0.0, []
    past = [(np.zeros(len(z)), 0.0) for _ in rule.memory]
    kept: list[Floats] = []
    for r in range(rounds):
        clients = draw.choice(CLIENTS, m, replace=False)
        fresh = model.root @ draw.standard_normal((len(z), p + 1))
        columns = [image / np.sqrt(norm) for image, norm in past if norm > 0]
        u = np.column_stack([*columns, fresh[:, : p + rule.more - len(columns)]])
        k = u.shape[1]
        steps, traces = [], []
        for client in clients:
            size = min(round(batch * rule.batch(r)), len(shards[client]))
            rows = draw.permutation(shards[client])[:size]
            prob = sigmoid(z[rows])
            bend, rest, j = prob * (1 - prob), prob - model.y[rows], u[rows]
            sides = np.mean(bend[:, None] * j**2), np.mean((rest[:, None] * j) ** 2)
            traces.append(max(sides))
            ridge = 14 * np.sqrt(k) / (m * size) * (c or traces[-1])
            a = (j * bend[:, None]).T @ j / size + ridge * np.eye(k)
            steps.append(np.linalg.solve(a, rest @ j / size))
        c = 0.9 * c + 0.1 * float(np.mean(traces)) if c else float(np.mean(traces))
        alpha = 0.5 * rule.gain(r) * np.mean(steps, 0)
        step = u @ alpha
        z = z - step
        past = [
            (beta * image + step, beta**2 * norm + float(alpha @ alpha))
            for beta, (image, norm) in zip(rule.memory, past, strict=True)
        ]
        kept = [*kept, z][-rule.mean :]
        if r + 1 in (20, 40, 80, 160):
            found.append(model.losses(np.mean(kept, 0)))
    return found


def show(name: str, runs: list[list[tuple[float, float]]]) -> None:
    """Means over seeds; training, then test losses."""
    means = np.mean(runs, 0).T
    print(f"{name:34s}", " | ".join(" ".join(f"{x:.3f}" for x in row) for row in means), flush=True)


def main() -> None:
    """Reads the matrices, and does what is asked."""
    path, what, *sizes = sys.argv[1:]
    data = np.load(path)
    a, b = map(int, sizes)
    gram = data["blocks"].sum(0)
    model = Model.of(gram, data["z"], data["y"])
    if what == "auto":
        auto(model, a, b)
    elif what == "helps":
        for name, rule in HELPS.items():
            show(name, [newton(model, rule, a, b, seed) for seed in range(12)])
    else:
        some = dict(zip(data["names"], data["blocks"], strict=True))
        some = {k: v for k, v in some.items() if not k.startswith("layer")}
        rest = {f"without {name}": gram - block for name, block in some.items()}
        inside = dict(zip(data["sets"], data["masks"], strict=True))
        for name, part in {"all weights": gram, **rest, **inside}.items():
            one = Model.of(part, data["z"], data["y"])
            show(name, [newton(one, Rule(), a, b, seed) for seed in range(12)])


if __name__ == "__main__":
    main()
