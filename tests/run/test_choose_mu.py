"""mu = auto, and a mu that drowns: measured on a real model."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hiso import simulate
from hiso.core.measure.calibrate import REFERENCE_MU
from hiso.core.measure.probe import Probe
from hiso.core.replica.replica import DTYPES, Replica
from hiso.errors import SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.run.choose_mu import settle
from hiso.run.observer import Silent
from hiso.run.settings import Settings, parse_settings
from hiso.run.workload.text import Words, load_words
from hiso.workloads.text.objective import Objective

from ..identities import identity_of

DIRECTIONS = 12
REAL = {"batch_size": 4, "max_length": 32, "test_examples": 1, "dev_examples": 1}


class Listener(Silent):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def notice(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture(scope="module")
def real() -> Words:
    settings = Settings(**REAL)
    return load_words(settings, settings.make_method(), Silent(), None)


def along(workload: Words, settings: Settings, dtype: str, mu: float, scheme: str) -> np.ndarray:
    """The scalars of directions that `settle` has not seen: another seed's."""
    replica = Replica(
        workload.module,
        identity_of(settings.make_method(), seed=settings.seed + 1, dtype=DTYPES[dtype]),
    )
    objective = Objective(workload.lm, workload.task, rows=replica.rows)
    probe = Probe(client=0, round=0, steps=1, directions=DIRECTIONS, mu=mu, scheme=scheme)
    batch = workload.shards[0].batch(0, 0)
    while (point := probe.ask()) is not None:
        replica.write(point, mu=probe.mu)
        probe.tell(objective([batch])[0])
    replica.release()
    return probe.scalars[0]


@pytest.mark.timeout(1800)  # hundreds of passes of 135 M weights on one thread
@pytest.mark.usefixtures("one_thread")
def test_scalars_at_the_chosen_mu_follow_the_derivatives(real):
    asked = {dtype: Settings(dtype=dtype, mu="auto", **REAL) for dtype in ("float32", "bfloat16")}
    truth = along(real, asked["float32"], "float32", REFERENCE_MU, "central")
    for dtype, settings in asked.items():
        listener = Listener()
        chosen = settle(settings, settings.make_method(), real, listener)
        assert f"mu = {chosen.mu:g} with {chosen.scheme}" in listener.heard[0]
        found = along(real, settings, dtype, chosen.mu, chosen.scheme)
        assert np.corrcoef(found, truth)[0, 1] >= 0.95, (dtype, chosen.mu, chosen.scheme)


@pytest.mark.usefixtures("one_thread")
def test_a_mu_that_drowns_is_refused_with_the_remedy(tmp_path, base):
    asked = base | {"dtype": "bfloat16", "mu": 1e-4, "rounds": 2}
    with pytest.raises(
        SettingsError, match=r"mu is unsuitable.*bfloat16.*the derivative"
    ) as refusal:
        simulate(out=tmp_path / "run", **asked)
    assert not (tmp_path / "run").exists()
    remedy = re.search(r"Set mu = (\S+) with scheme = (\w+)", str(refusal.value))
    assert remedy is not None
    simulate(out=tmp_path / "run", **asked | {"mu": float(remedy[1]), "scheme": remedy[2]})


def test_ordinary_float32_is_taken_without_measuring():
    settings = Settings(mu=1e-3)
    settled = settle(settings, settings.make_method(), None, Silent())  # pyright: ignore
    assert settled == settings.model_copy(update={"scheme": "forward"})


@pytest.mark.usefixtures("one_thread")
def test_a_run_keeps_the_mu_that_was_measured(tmp_path, base):
    out, asked = tmp_path / "run", base | {"mu": "auto", "dtype": "bfloat16", "rounds": 3}
    first = simulate(out=out, **asked)
    chosen = {key: first["settings"][key] for key in ("mu", "scheme")}
    assert chosen["mu"] in (2e-3, 5e-3, 1e-2, 2e-2)
    again = simulate(out=out, **asked, change={"rounds": 4})
    assert {key: again["settings"][key] for key in chosen} == chosen
    plain = simulate(out=tmp_path / "plain", **{**asked, **chosen, "rounds": 4})
    assert plain["digest"] == again["digest"]


@pytest.mark.usefixtures("one_thread")
def test_a_change_of_mu_is_checked_too(tmp_path, base):
    out = tmp_path / "run"
    before = simulate(out=out, **base)
    with pytest.raises(SettingsError, match="mu is unsuitable"):
        simulate(out=out, **base, change={"mu": 1e-9, "rounds": 8})
    with Ledger.open(out / "ledger.sqlite") as ledger:
        assert ledger.settings == before["settings"]
    measured = simulate(out=out, **base, change={"mu": "auto", "rounds": 8})
    assert measured["settings"]["mu"] in (3e-4, 1e-3, 3e-3)


def test_mu_is_a_number_or_auto():
    assert parse_settings({"mu": "2e-3"}).mu == 2e-3
    with pytest.raises(SettingsError, match="mu"):
        parse_settings({"mu": "automatic"})
    with pytest.raises(ValueError, match="auto"):
        parse_settings({"mu": "auto"}).make_rounds(parse_settings({}).make_method())
