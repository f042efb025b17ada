"""Problems with a known Hessian: closed forms, the exact recursion, and real races."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hiso.core.method.registry import HiSo, ZoSgd
from hiso.errors import SettingsError
from hiso.lab.theory.dimension.expected import Expected
from hiso.lab.theory.dimension.problems import Separable, Shard, Shifts, normals
from hiso.lab.theory.dimension.race import race
from hiso.lab.theory.dimension.spectra import Spectrum
from hiso.lab.theory.fit import fit_slope, rank_correlation
from hiso.ring.round_settings import RoundSettings

RULES = RoundSettings(clients=4, sample=2, steps=1, directions=5, mu=1e-4)
HEAD = {"head": 5, "condition": 20, "tail_trace": 0.3, "tail_share": 0.05}

pytestmark = pytest.mark.usefixtures("one_thread")


@settings(max_examples=30, deadline=None)
@given(
    d=st.integers(30, 10**7),
    head=st.integers(1, 20),
    condition=st.floats(1, 1e4),
    trace=st.floats(1e-3, 9),
)
def test_the_effective_rank_is_set_whatever_d_is(d, head, condition, trace):
    spectrum = Spectrum.headed(d, head=head, condition=condition, tail_trace=trace, tail_share=0.01)
    assert spectrum.d == d
    expected = np.geomspace(1, 1 / condition, head).sum() + trace
    assert spectrum.effective_rank == pytest.approx(expected)
    assert spectrum.values.max() == 1
    assert spectrum.shares.sum() == pytest.approx(1)
    assert spectrum.whitened_trace(spectrum.values) == pytest.approx(d)  # the paper's H = Σ


def test_a_flat_spectrum_is_the_worst_case():
    assert Spectrum.flat(300).effective_rank == 300


def test_a_spectrum_without_room_for_its_tail_is_refused():
    with pytest.raises(SettingsError, match="leaves no tail of trace 4"):
        Spectrum.headed(8, head=5, condition=2, tail_trace=4, tail_share=0.1)


@pytest.mark.parametrize("curve", ["least_squares", "logistic"])
def test_the_loss_is_its_closed_form_and_bends_as_the_spectrum_says(curve):
    spectrum = Spectrum.headed(40, **HEAD)
    problem = Separable(spectrum, curve)
    values, optimum = (
        torch.from_numpy(spectrum.spread(groups)) for groups in (spectrum.values, problem.optimum)
    )

    def plain(at):
        if curve == "least_squares":
            return (values * (at - optimum) ** 2 / 2).sum()
        q = torch.sigmoid(optimum)
        each = -q * torch.log(torch.sigmoid(at)) - (1 - q) * torch.log(torch.sigmoid(-at))
        entropy = -q * q.log() - (1 - q) * (1 - q).log()
        return (4 * values * (each - entropy)).sum()

    for x in (torch.zeros(40), torch.linspace(-1, 2, 40), optimum.float()):
        assert problem.loss(x) == pytest.approx(float(plain(x.double())), rel=1e-10, abs=1e-12)
    start = torch.zeros(40).double()
    bend = torch.autograd.functional.hessian(plain, start)
    torch.testing.assert_close(bend, torch.diag(values))
    slope = torch.autograd.functional.jacobian(plain, optimum)
    torch.testing.assert_close(slope, torch.zeros(40).double(), atol=1e-12, rtol=0)


def test_the_initial_loss_is_divided_as_asked():
    spectrum = Spectrum.headed(100, **HEAD)
    problem = Separable(spectrum, "least_squares")
    each = spectrum.counts * spectrum.values * problem.optimum**2 / 2
    np.testing.assert_allclose(each, spectrum.shares)
    assert problem.loss(problem.x.detach()) == pytest.approx(1)


def test_a_batch_tilts_the_loss_and_clients_tilt_it_by_nothing_together():
    spectrum = Spectrum.headed(50, **HEAD)
    problem = Separable(spectrum, "least_squares")
    problem.x.data = torch.linspace(0, 1, 50)
    shift = np.arange(6.0)
    tilt = float(spectrum.spread(spectrum.values * shift) @ problem.x.detach().numpy())
    calm, tilted = problem.losses([np.zeros(6), shift])
    assert calm - tilted == pytest.approx(tilt, rel=1e-6)
    shifts = Shifts(clients=4, client=0.7, batch=0.0, seed=1)
    total = sum(Shard(i, shifts, spectrum).batch(3, 0) for i in range(4))
    np.testing.assert_allclose(total, 0, atol=1e-12)
    noisy = Shard(0, replace(shifts, batch=0.5), spectrum)
    assert (noisy.batch(3, 0) != noisy.batch(4, 0)).all()


def test_the_gradients_noise_is_what_it_is_said_to_be():
    spectrum = Spectrum.headed(60, **HEAD)
    shifts = Shifts(clients=4, client=0.5, batch=0.3, seed=2)
    found = np.zeros((3000, 6))
    for key in range(3000):
        own = replace(shifts, seed=key)
        pair = [Shard(i, own, spectrum).batch(0, 0) for i in (0, 3)]
        found[key] = spectrum.values * np.mean(pair, axis=0)
    expected = shifts.gradient_noise(spectrum, 2)
    np.testing.assert_allclose(found.var(0), expected, rtol=5 * math.sqrt(2 / 3000))


def test_normals_are_normal():
    drawn = normals(0, "test", 1, count=50_000)
    assert abs(drawn.mean()) < 5 / math.sqrt(50_000)
    assert abs(drawn.var() - 1) < 5 * math.sqrt(2 / 50_000)
    assert abs((drawn**4).mean() - 3) < 5 * math.sqrt(96 / 50_000)


@pytest.mark.parametrize("racer", ["plain", "oracle"])
def test_races_take_the_rounds_that_the_recursion_expects(racer):
    spectrum = Spectrum.headed(2000, **HEAD)
    h = np.ones(6) if racer == "plain" else np.maximum(spectrum.values, 0.15)
    lr = 0.25 * spectrum.step_unit(h, 5)
    shifts = Shifts(4, client=0.1, batch=0.1, seed=0)
    rounds = [
        race(
            Separable(spectrum, "least_squares"),
            HiSo(lr=lr, nu=0.0, floor=0.0),
            RULES,
            replace(shifts, seed=seed),
            target=0.2,
            limit=400,
            seed=seed,
            h=h,
        ).rounds
        for seed in range(4)
    ]
    expected = Expected(spectrum, shifts.gradient_noise(spectrum, 2), 5).rounds(
        lr=lr, h=h, target=0.2, limit=400
    )
    assert expected
    assert None not in rounds
    spread = np.std(rounds, ddof=1) / math.sqrt(len(rounds))
    assert abs(fmean(rounds) - expected) < 4 * spread + 0.1 * expected


def test_the_recursion_gives_up_when_steps_are_too_long():
    spectrum = Spectrum.flat(100)
    recursion = Expected(spectrum, np.zeros(1), 5)
    unit = spectrum.step_unit(np.ones(1), 5)
    good = recursion.rounds(lr=unit, h=np.ones(1), target=0.1, limit=500)
    assert good == recursion.rounds(lr=4 * unit, h=np.full(1, 4.0), target=0.1, limit=500)
    assert recursion.rounds(lr=3 * unit, h=np.ones(1), target=0.1, limit=500) is None


def test_an_oracle_of_ones_is_plain_zo_sgd_and_repeats_itself():
    spectrum = Spectrum.headed(300, **HEAD)
    shifts = Shifts(4, 0.1, 0.1, 0)
    lr = 0.5 * spectrum.step_unit(np.ones(6), 5)

    def run(method, h):
        problem = Separable(spectrum, "logistic")
        return race(problem, method, RULES, shifts, target=0.3, limit=60, seed=3, h=h)

    oracle = HiSo(lr=lr, nu=0.0, floor=0.0)
    plain, ones, again, other = (
        run(ZoSgd(lr=lr), None),
        run(oracle, np.ones(6)),
        run(oracle, np.ones(6)),
        run(oracle, np.linspace(1, 2, 6)),
    )
    assert plain.rounds == ones.rounds == again.rounds is not None
    assert ones.digest == again.digest != other.digest
    assert plain.loss == ones.loss


def test_a_race_that_blows_up_says_so():
    outcome = race(
        Separable(Spectrum.flat(500), "least_squares"),
        ZoSgd(lr=1.0),
        RULES,
        Shifts(4, 0, 0, 0),
        target=0.1,
        limit=500,
        seed=0,
    )
    assert (outcome.rounds, outcome.end) == (None, "blown up")


def test_a_power_law_is_found():
    x = [10, 100, 1000, 10_000]
    exact = fit_slope(x, [3 * value**0.7 for value in x])
    assert exact.slope == pytest.approx(0.7)
    assert exact.error == pytest.approx(0, abs=1e-9)
    noisy = fit_slope(x * 2, [value * (1.2 if i < 4 else 1 / 1.2) for i, value in enumerate(x * 2)])
    assert noisy.slope == pytest.approx(1)
    assert noisy.error > 0.01
    with pytest.raises(ValueError, match="three points"):
        fit_slope([1, 2], [1, 2])


def test_rank_correlation_is_scipys_and_its_error_is_that_of_chance():
    from scipy.stats import spearmanr

    generator = np.random.Generator(np.random.Philox(1))
    a, b = generator.normal(size=(2, 2000))
    found = rank_correlation(a, a + 2 * b, resamples=200)
    assert found.rho == pytest.approx(spearmanr(a, a + 2 * b).statistic)
    unrelated = rank_correlation(a, b, resamples=200)
    assert unrelated.error == pytest.approx(unrelated.chance, rel=0.3)
    assert abs(unrelated.rho) < 4 * unrelated.chance
