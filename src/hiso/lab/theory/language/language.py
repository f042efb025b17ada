"""`language`: what h learns about a language model, and what an oracle's h could gain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hiso.core.keys import choose
from hiso.core.replica.replica import Replica
from hiso.errors import SettingsError
from hiso.lab.bench.timing import one_thread
from hiso.lab.theory.cells import Cell, Cells
from hiso.lab.theory.curvature import learned
from hiso.lab.theory.fit import rank_correlation
from hiso.lab.theory.language.examples import Margins, Sample, Slopes, measure_slopes
from hiso.lab.theory.language.layers import look_at_layer
from hiso.lab.theory.language.outlooks import oracle_table, spectrum_of
from hiso.lab.theory.presets import LanguagePreset
from hiso.ring.ledger.ledger import Ledger
from hiso.run.folder import RunFolder
from hiso.run.launch import launch
from hiso.run.observer import Observer
from hiso.run.settings import Settings, parse_settings
from hiso.workloads.text.encode import Encoded, encode
from hiso.workloads.text.examples import load_examples
from hiso.workloads.text.models import LanguageModel, load_model, output_head
from hiso.workloads.text.task import Task
from hiso.workloads.text.tasks import get_task

_CHUNK = 16
_OTHER_SEED = 10_000


@dataclass(frozen=True)
class _Scene:
    """The common inputs of all cells of the experiment."""

    preset: LanguagePreset
    settings: Settings
    folder: Path
    lm: LanguageModel
    task: Task
    examples: list[Encoded]
    ledger: Ledger
    base: dict[str, Tensor]

    @contextmanager
    def replica(self, position: int, seed: int | None = None) -> Iterator[Replica]:
        """The run's replica at a position; `seed` selects directions of another seed."""
        own = self.settings.seed if seed is None else seed
        self.lm.model.load_state_dict(self.base)
        identity = replace(self.ledger.identity, seed=own, dtype="float32")
        replica = Replica(self.lm.model, identity)
        replica.replay(self.ledger.records(0, position))
        replica.write()
        try:
            yield replica
        finally:
            replica.release()


def run_language(
    preset: LanguagePreset, folder: Path, cells: Cells, observer: Observer
) -> dict[str, Any]:
    """Runs HiSo, then one backward pass per example at each position.

    Returns:
        rows: One row per position.
        oracles: One row per oracle's h and position.
        layers: One row per layer, at the last position.
        tables: Tables for display.
    """
    if odd := {"rounds", "out"} & preset.run.keys():
        raise SettingsError(f"run: leave {', '.join(sorted(odd))} away: positions say how long")
    positions = sorted(preset.positions)
    given = {**preset.run, "rounds": max(1, positions[-1])}
    settings = parse_settings(given, "run")
    if "h" not in settings.make_method().state:
        raise SettingsError(f"run: {settings.method} learns no diagonal h; use hiso or hizoo")
    with one_thread():
        if positions[-1]:
            launch(given, folder / "run", observer=observer)
        else:
            raise SettingsError("positions: name one after the start, for h to have learned")
        with Ledger.read(RunFolder(folder / "run").ledger) as ledger:
            scene = _scene(preset, settings, folder, ledger)
            rows, oracles = [], []
            for position in positions:
                slopes, sample = _slopes(scene, cells, position, observer)
                look = partial(_look, scene, position, slopes, sample)
                with observer.phase(f"position {position}"):
                    rows.append(cells.get(f"position {position}", look))
                    table = cells.get(
                        f"oracles {position}",
                        lambda s=slopes, m=sample: {"rows": oracle_table(preset, settings, s, m)},
                    )
                oracles += [{"position": position, **row} for row in table["rows"]]
            layers = [_layer(scene, cells, positions[-1], name, observer) for name in preset.layers]
    shown = ["position", "gradient_norm2", "sample_noise", "trace_gauss_newton", "kappa",
             "h_mean", "h_spread", "rho_gauss_newton", "rho_second_moment"]  # fmt: skip
    tables = {"rows": shown, "oracles": ["position", "weights", "h", "floor", "ratio", "error"]}
    if layers:
        tables["layers"] = ["layer", "rho_hessian", "rho_gauss_newton", "chance", "trace_hessian",
                            "top_hessian"]  # fmt: skip
    return {"rows": rows, "oracles": oracles, "layers": layers, "tables": tables}


def _scene(preset: LanguagePreset, settings: Settings, folder: Path, ledger: Ledger) -> _Scene:
    task, lm = get_task(settings.task), load_model(settings.model)
    if lm.classes is not None:
        raise SettingsError(f"{lm.name} is a classifier: name a causal language model.")
    train = load_examples(task, settings.data).train
    picked = choose(0, "theory", size=len(train), count=min(preset.examples, len(train)))
    encoded = encode([train[i] for i in picked], task, lm.tokenizer, settings.max_length)
    base = {name: value.clone() for name, value in lm.model.state_dict().items()}
    return _Scene(preset, settings, folder, lm, task, encoded, ledger, base)


def _slopes(
    scene: _Scene, cells: Cells, position: int, observer: Observer
) -> tuple[Slopes, Sample]:
    """∇δ of every example at a position, stored in the folder in chunks."""
    margins = Margins(scene.lm, scene.task)
    head = output_head(scene.lm.model).weight
    name = next(n for n, p in scene.lm.model.named_parameters() if p is head)
    parts: list[Slopes] = []
    total = len(scene.examples)
    title = f"backward passes at position {position}"
    with scene.replica(position) as replica, observer.phase(title, total) as advance:
        sample = Sample.draw(replica.layout, name, margins.words.tolist(), scene.preset.sampled)
        for start in range(0, total, _CHUNK):
            path = scene.folder / f"slopes-{position}-{start}.npz"

            def measured(first: int = start, at: Path = path) -> Cell:
                found = measure_slopes(margins, sample, scene.examples[first : first + _CHUNK])
                np.savez(at, **vars(found))
                return {"file": at.name}

            cells.get(f"slopes {position} {start}", measured)
            with np.load(path) as stored:
                parts.append(Slopes(**{key: stored[key] for key in stored.files}))
            advance(min(_CHUNK, total - start))
    return Slopes.join(parts), sample


def _look(scene: _Scene, position: int, slopes: Slopes, sample: Sample) -> Cell:
    """All measurements at one position."""
    with scene.replica(position) as replica:
        h = sample.of_flat(replica.layout, replica.state["h"]).astype(np.float64)
    with scene.replica(position, _OTHER_SEED) as replica:
        h_other = sample.of_flat(replica.layout, replica.state["h"]).astype(np.float64)
    factors = slopes.factors(sample.stands_for)
    batch = scene.settings.sample * scene.settings.batch_size
    moment, diagonal = factors.second_moment(batch), factors.diagonal
    weight = sample.stands_for
    mean, spread = _moments(h, weight)
    records = scene.ledger.records(0, position)
    p = scene.settings.directions
    method = scene.settings.make_method()
    shares = moment / float(weight @ moment)
    halves = np.arange(len(slopes.margin)) % 2 == 0
    first, second = (factors.pick(np.flatnonzero(x)) for x in (halves, ~halves))
    body = ~sample.embedding
    out: Cell = {
        "position": position,
        "examples": len(slopes.margin),
        "weights": round(weight.sum()),
        "loss": float(np.logaddexp(0, (1 - 2 * slopes.label) * slopes.margin).mean()),
        **spectrum_of(slopes, sample),
        "h_mean": mean,
        "h_spread": spread,
        "h_spread_other_seed": _moments(h_other, weight)[1],
        "reliability_gauss_newton": rank_correlation(first.diagonal, second.diagonal).rho,
        "reliability_second_moment": rank_correlation(
            first.second_moment(batch), second.second_moment(batch)
        ).rho,
        "gauss_newton_with_second_moment": rank_correlation(diagonal, moment).rho,
    }
    for name, values in {"gauss_newton": diagonal, "second_moment": moment}.items():
        found = rank_correlation(h, values)
        out |= {f"rho_{name}": found.rho, f"rho_{name}_error": found.error}
        out[f"rho_{name}_other_seed"] = rank_correlation(h_other, values).rho
        out[f"rho_{name}_body"] = rank_correlation(h[body], values[body]).rho
        out[f"rho_{name}_label_rows"] = rank_correlation(h[sample.label], values[sample.label]).rho
        out[f"rounds_for_0.3_{name}"] = learned.rounds_needed(shares, values, 0.3, directions=p)
    out["rho_chance"] = 1 / np.sqrt(len(h) - 1)
    total = out["gradient_norm2"] + out["sample_noise"] / batch
    out["h_mean_expected_at_rest"] = learned.resting_level(total, p)
    out["h_spread_expected_at_rest"] = learned.scatter(
        float(getattr(method, "nu", 0.05)), learned.step_noise(p)
    )
    out["largest_signal"] = float(learned.signal(shares, p).max() - 1)
    out["scalar_second_moment"] = (
        float(np.mean([(r.coefficient.astype(float) ** 2).sum() for r in records]))
        if records
        else None
    )
    return out


def _moments(values: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Mean, and deviation divided by the mean, of all weights, estimated from the drawn ones."""
    mean = float(np.average(values, weights=weight))
    return mean, float(np.sqrt(np.average((values - mean) ** 2, weights=weight)) / mean)


def _layer(
    scene: _Scene, cells: Cells, position: int, name: str, observer: Observer
) -> dict[str, Any]:
    def work() -> Cell:
        with scene.replica(position) as replica, observer.phase(f"the Hessian of {name}"):
            return look_at_layer(
                Margins(scene.lm, scene.task),
                replica,
                name,
                scene.examples[: scene.preset.layer_examples],
                probes=scene.preset.probes,
                eigenvalues=scene.preset.eigenvalues,
            )

    return cells.get(f"layer {name}", work)
