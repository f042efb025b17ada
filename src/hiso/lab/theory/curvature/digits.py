"""`curvature`: what h learns on a network that is small enough for an exact Hessian."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hiso.core.method.registry import HiSo
from hiso.lab.bench.timing import one_thread
from hiso.lab.theory.cells import Cell, Cells
from hiso.lab.theory.curvature import images, learned
from hiso.lab.theory.curvature.factors import Factors, outlook, shape_of
from hiso.lab.theory.curvature.federation import Federation, state_at
from hiso.lab.theory.curvature.lanczos import top_eigenvalues
from hiso.lab.theory.curvature.second_derivatives import (
    FlatModel,
    gauss_newton_product,
    hessian_product,
    hutchinson,
    matrix,
    softmax_factors,
)
from hiso.lab.theory.fit import rank_correlation
from hiso.lab.theory.presets import CurvaturePreset, Standing
from hiso.run.observer import Observer

_OTHER_SEED = 10_000
_BATCHES = 1_000
_SHAPES = ("gauss_newton", "gauss_newton_sqrt", "second_moment_sqrt")


def run_digits(
    preset: CurvaturePreset, folder: Path, cells: Cells, observer: Observer
) -> dict[str, Any]:
    """Runs HiSo, measures positions of the run, and lets h become stationary from the last.

    Returns:
        rows: One row per position.
        standing: One row per run with lr = 0.
        tables: Tables for display.
    """
    inputs, labels, *test = images.digits()
    federation = Federation(
        preset.rules,
        HiSo(lr=preset.lr, nu=preset.nu, floor=preset.floor),
        inputs,
        labels,
        preset.batch_size,
        preset.seed,
    )
    positions = sorted(preset.positions)
    path = folder / "train.sqlite"
    with one_thread():
        federation.run(path, positions[-1], observer, "training")
        rows: list[Cell] = []
        with observer.phase("second derivatives", len(positions)) as advance:
            for position in positions:
                look = partial(_look, preset, federation, path, position, test)
                rows.append(cells.get(f"position {position}", look))
                advance(1)
        standing: list[Cell] = []
        for s in preset.standing:
            for number in range(preset.runs):
                stand = partial(_stand, preset, federation, folder, s, number, observer)
                name = f"standing nu={s.nu:g} P={s.directions} rounds={s.rounds} run={number}"
                standing.append(cells.get(name, stand))
    return {
        "rows": rows,
        "standing": standing,
        "tables": {"rows": _SHOWN, "standing": _SHOWN_STANDING},
    }


_SHOWN = ["position", "accuracy", "h_mean", "h_spread", "other_seed_spread", "rho_hessian",
          "rho_second_moment", "rho_chance"]  # fmt: skip
_SHOWN_STANDING = ["nu", "directions", "h_mean", "h_spread", "h_spread_other_seed",
                   "rho_second_moment", "rho_expected"]  # fmt: skip


def _look(
    preset: CurvaturePreset,
    federation: Federation,
    path: Path,
    position: int,
    test: Sequence[Tensor],
) -> Cell:
    """All measurements at one position; exact unless marked as estimated."""
    with federation.ledger(path) as ledger:
        weights, h = state_at(federation, ledger, position)
        _, other = state_at(federation, ledger, position, seed=_OTHER_SEED)
    module = federation.module()
    count = preset.examples
    model = FlatModel(module, federation.inputs[:count].double(), federation.labels[:count])
    at = weights.double()
    hessian = hessian_product(model.loss, at)
    newton = gauss_newton_product(model.outputs, model.criterion, at)
    exact = matrix(hessian, at)
    factors = factors_of(model, at)
    ggn = np.tensordot(factors.factors, factors.factors, ([0, 1], [0, 1])) / len(model.labels)
    batch = preset.sample * preset.batch_size
    moment, diagonal = factors.second_moment(batch), factors.diagonal
    probed = {
        "hessian": hutchinson(hessian, at, probes=preset.probes, seed=1),
        "gauss_newton": hutchinson(newton, at, probes=preset.probes, seed=1),
    }
    truth = {"hessian": torch.diagonal(exact).numpy(), "gauss_newton": diagonal}
    eigenvalues = np.linalg.eigvalsh(exact.numpy())[::-1]
    of_newton = np.linalg.eigvalsh(ggn)[::-1]
    lanczos = top_eigenvalues(hessian, at, preset.eigenvalues)
    torch.nn.utils.vector_to_parameters(weights, module.parameters())
    sees = {
        "hessian": np.abs(truth["hessian"]),
        "gauss_newton": diagonal,
        "squared_gradient": factors.squared_gradient,
        "second_moment": moment,
    }
    plain = outlook(factors, np.ones_like(h), directions=preset.directions, batch=batch)
    candidates = {
        "h": h,
        **{name: shape_of(name, factors, share=0.1, batch=batch) for name in _SHAPES},
    }
    looks = {
        name: outlook(factors, value, directions=preset.directions, batch=batch)
        for name, value in candidates.items()
    }
    return {
        "position": position,
        "accuracy": images.accuracy(module, test[0], test[1]),
        "loss": float(model.loss(at)),
        "h_mean": float(h.mean()),
        "h_spread": float(h.std() / h.mean()),
        "other_seed_spread": float(other.std() / other.mean()),
        **{f"rho_{name}": rank_correlation(h, value).rho for name, value in sees.items()},
        "rho_other_seed": rank_correlation(other, sees["second_moment"]).rho,
        "rho_error": rank_correlation(h, sees["hessian"]).error,
        "rho_chance": rank_correlation(h, sees["hessian"]).chance,
        "second_moment_with_gauss_newton": rank_correlation(moment, diagonal).rho,
        "hessian_with_gauss_newton": rank_correlation(sees["hessian"], diagonal).rho,
        "gradient_norm2": float(factors.squared_gradient.sum()),
        "sample_noise": float(factors.variance.sum()),
        "trace_hessian": float(eigenvalues.sum()),
        "trace_gauss_newton": float(of_newton.sum()),
        "kappa": float(of_newton.sum() / of_newton[0]),
        "zeta_h": looks["h"].zeta * plain.gain / looks["h"].gain,
        "zeta_one": plain.zeta,
        "progress": {name: look.progress / plain.progress for name, look in looks.items()},
        "top_hessian": eigenvalues[: preset.eigenvalues].tolist(),
        "bottom_hessian": float(eigenvalues[-1]),
        "top_hessian_lanczos": lanczos.tolist(),
        "top_gauss_newton": of_newton[: preset.eigenvalues].tolist(),
        "hutchinson": {
            name: {
                "trace": float(estimate.trace.value),
                "trace_error": float(estimate.trace.error),
                "trace_exact": float(truth[name].sum()),
                "diagonal_rho_with_exact": rank_correlation(
                    estimate.diagonal.value.numpy(), truth[name]
                ).rho,
                "diagonal_within_2_errors": float(
                    (
                        np.abs(estimate.diagonal.value.numpy() - truth[name])
                        <= 2 * estimate.diagonal.error.numpy()
                    ).mean()
                ),
            }
            for name, estimate in probed.items()
        },
        "layers": _layers(model, h, sees),
    }


def factors_of(model: FlatModel, at: Tensor) -> Factors:
    """The factors of all of the model's examples at weights [d]."""
    with torch.no_grad():
        logits = model.outputs(at)
    gradients, rows = softmax_factors(model.jacobians(at).detach(), logits, model.labels)
    return Factors(gradients.numpy(), rows.numpy(), np.ones(len(at)), whole=True)


def _layers(model: FlatModel, h: Any, sees: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The rank correlations within each parameter."""
    found: dict[str, dict[str, float]] = {}
    start = 0
    for name, shape in model.shapes.items():
        here = slice(start, start + shape.numel())
        start = here.stop
        found[name] = {
            kind: rank_correlation(h[here], value[here]).rho for kind, value in sees.items()
        } | {"chance": 1 / np.sqrt(max(1, shape.numel() - 1))}
    return found


def _stand(
    preset: CurvaturePreset,
    trained: Federation,
    folder: Path,
    standing: Standing,
    number: int,
    observer: Observer,
) -> Cell:
    """HiSo with lr = 0: the distribution of gradients is constant, so h becomes stationary."""
    with trained.ledger(folder / "train.sqlite") as ledger:
        weights, _ = state_at(trained, ledger, max(preset.positions))
    federation = replace(
        trained,
        rules=replace(trained.rules, directions=standing.directions),
        method=HiSo(lr=0.0, nu=standing.nu, floor=0.0),
        seed=preset.seed + 1 + number,
        start=weights,
    )
    name = f"standing-{standing.nu:g}-{standing.directions}-{standing.rounds}-{number}.sqlite"
    federation.run(folder / name, standing.rounds, observer, f"h at rest, nu = {standing.nu:g}")
    model = FlatModel(federation.module(), federation.inputs, federation.labels)
    factors = factors_of(model, weights)
    with federation.ledger(folder / name) as ledger:
        end = ledger.position
        _, h = state_at(federation, ledger, end)
        _, other = state_at(federation, ledger, end, seed=_OTHER_SEED)
        rest = ledger.records(max(0, end - max(_BATCHES, round(2 / standing.nu))), end)
        moment = _moment(factors, federation.batch_rows(ledger, _BATCHES))
    shares, p = moment / moment.sum(), standing.directions
    noise = learned.step_noise_of(rest)
    diagonal = factors.diagonal
    return {
        "nu": standing.nu,
        "directions": p,
        "rounds": standing.rounds,
        "run": number,
        "h_mean": float(h.mean()),
        "h_mean_expected": learned.resting_level(float(moment.sum()), p),
        "h_spread": float(h.std() / h.mean()),
        "h_spread_expected": learned.scatter(standing.nu, learned.step_noise(p)),
        "h_spread_expected_from_scalars": learned.scatter(standing.nu, noise),
        "h_spread_other_seed": float(other.std() / other.mean()),
        "signal_spread": float(learned.signal(shares, p).std()),
        "rho_second_moment": rank_correlation(h, moment).rho,
        "rho_expected": learned.expected_correlation(
            shares, moment, nu=standing.nu, directions=p, noise=noise
        ),
        "rho_gauss_newton": rank_correlation(h, diagonal).rho,
        "rho_gauss_newton_expected": learned.expected_correlation(
            shares, diagonal, nu=standing.nu, directions=p, noise=noise
        ),
        "rho_other_seed": rank_correlation(other, moment).rho,
        "rho_error": rank_correlation(h, moment).error,
        "rho_chance": rank_correlation(h, moment).chance,
        "rounds_for_0.3": learned.rounds_needed(shares, moment, 0.3, directions=p),
        "rounds_for_0.3_gauss_newton": learned.rounds_needed(shares, diagonal, 0.3, directions=p),
        "share_variation": float(shares.std() / shares.mean()),
    }


def _moment(factors: Factors, batches: list[list[Sequence[int]]]) -> Any:
    """E ĝ² [d] over rounds, from the batches of these rounds."""
    total = np.zeros(factors.gradients.shape[1])
    for clients in batches:
        means = [factors.gradients[list(rows)].mean(0, dtype=np.float64) for rows in clients]
        total += np.mean(means, axis=0) ** 2
    return total / len(batches)
