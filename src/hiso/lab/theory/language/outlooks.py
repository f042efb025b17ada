"""Norms, spectrum and oracles' progress, with errors, computed from per-example slopes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hiso.lab.theory.curvature.factors import Factors, outlook
from hiso.lab.theory.language.examples import Sample, Slopes
from hiso.lab.theory.presets import LanguagePreset
from hiso.run.settings import Settings

_RESAMPLES = 100
_SPLITS = 10

Vector = NDArray[np.float64]


def spectrum_of(slopes: Slopes, sample: Sample) -> dict[str, Any]:
    """Gradient, noise, and the trace and largest eigenvalues of the Gauss–Newton matrix.

    Errors (`…_error`) are standard errors by bootstrap over examples.
    """
    dots, n = slopes.dots(), len(slopes.margin)
    generator = np.random.Generator(np.random.Philox(0))

    def figures(picked: NDArray[np.intp]) -> dict[str, float]:
        part = dots[np.ix_(picked, picked)]
        different = picked[:, None] != picked[None]  # two copies of one example are not independent
        residual, bend = slopes.residual[picked], slopes.bend[picked]
        gradients = residual[:, None] * residual[None] * part
        norm2 = float(gradients[different].mean())
        trace = float((bend * slopes.norms[picked]).mean())
        roots = np.sqrt(bend)
        eigenvalues = np.linalg.eigvalsh(roots[:, None] * roots[None] * part / len(picked))[::-1]
        return {
            "gradient_norm2": norm2,
            "sample_noise": float((residual**2 * slopes.norms[picked]).mean()) - norm2,
            "trace_gauss_newton": trace,
            "top_gauss_newton": float(eigenvalues[0]),
            "second_gauss_newton": float(eigenvalues[1]),
            "kappa": trace / float(eigenvalues[0]),
            "label_rows_of_trace": float((bend * slopes.label_norms[picked]).mean()) / trace,
        }

    found = figures(np.arange(n))
    drawn = [figures(generator.integers(0, n, n)) for _ in range(_RESAMPLES)]
    errors = {f"{key}_error": float(np.std([d[key] for d in drawn])) for key in found}
    labels = slopes.factors(sample.stands_for).keep(sample.label)
    energy = float(labels.squared_gradient.sum())
    half = figures(np.arange(0, n, 2))["kappa"]
    return {
        **found,
        **errors,
        "kappa_of_half_the_examples": half,
        "label_rows_of_gradient": energy / found["gradient_norm2"],
    }


def oracle_table(
    preset: LanguagePreset, settings: Settings, slopes: Slopes, sample: Sample
) -> list[dict[str, Any]]:
    """Expected progress of a round with an oracle's h, divided by that with h = 1.

    h is a power of the Gauss–Newton diagonal of one half of the examples, floored at a fraction of
    its mean, and evaluated on the other half; the results are mean and deviation over several
    random halves. `block` is the diagonal's mean over each parameter. The weights are all weights,
    or all without the matrix of the label words' rows: in this matrix, rows of words that do not
    occur in one half would otherwise dominate.
    """
    factors = slopes.factors(sample.stands_for)
    batch = settings.sample * settings.batch_size
    everything = np.ones(len(sample.stands_for), bool)
    choices = {"all": everything, "without embedding": ~sample.embedding}
    kinds: list[tuple[float | str, float]] = [
        (power, floor) for floor in preset.floors for power in preset.powers
    ]
    kinds.append(("block", 0.0))
    ratios: dict[tuple[str, float | str, float], list[float]] = {}
    generator = np.random.Generator(np.random.Philox(0))
    n = len(slopes.margin)
    for _ in range(_SPLITS):
        order = generator.permutation(n)
        for weights, kept in choices.items():
            part = factors.keep(kept)
            learning, judging = part.pick(order[: n // 2]), part.pick(order[n // 2 :])
            diagonal = learning.diagonal
            blocks = _block_means(diagonal, sample, kept)
            plain = _progress(judging, np.ones(len(diagonal)), settings, batch)
            for power, floor in kinds:
                if power == "block":
                    h = blocks
                else:
                    mean = float(np.average(diagonal, weights=part.stands_for))
                    h = np.maximum(diagonal, floor * mean) ** float(power)
                ratio = _progress(judging, h, settings, batch) / plain if plain else np.nan
                ratios.setdefault((weights, power, floor), []).append(ratio)
    return [
        {
            "weights": weights,
            "h": "block" if power == "block" else f"diagonal^{power:g}",
            "floor": floor,
            "ratio": _finite(np.mean(found)),
            "error": _finite(np.std(found)),
        }
        for (weights, power, floor), found in ratios.items()
    ]


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _progress(factors: Factors, h: Vector, settings: Settings, batch: int) -> float:
    return outlook(factors, h, directions=settings.directions, batch=batch).progress


def _block_means(diagonal: Vector, sample: Sample, kept: NDArray[np.bool_]) -> Vector:
    """A diagonal with every value replaced by its mean over the parameter."""
    whole = np.full(len(kept), np.nan)
    whole[kept] = diagonal
    for here in sample.blocks().values():
        if kept[here].any():
            whole[here] = np.average(whole[here], weights=sample.stands_for[here])
    found = whole[kept]
    return np.maximum(found, 1e-12 * found.max())
