"""What h can know of a weight: the formulas against simulation and against real logs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hiso.core.keys import choose
from hiso.core.method.registry import HiSo
from hiso.core.noise.reference import direction
from hiso.lab.theory.curvature import images, learned
from hiso.lab.theory.curvature.federation import Federation, state_at
from hiso.lab.theory.dimension.expected import FOURTH_MOMENT
from hiso.lab.theory.fit import rank_correlation
from hiso.ring.round_settings import RoundSettings
from hiso.run.observer import Silent

pytestmark = pytest.mark.usefixtures("one_thread")


LEVELS = np.array([n.bit_count() / 2 - 4 for n in range(2**16)], np.float32)


def binomial(generator, *shape):
    return LEVELS[generator.integers(0, 2**16, shape, dtype=np.uint16)]


@pytest.mark.parametrize("directions", [1, 4])
def test_the_second_moment_of_a_step_is_as_derived(directions):
    generator = np.random.Generator(np.random.Philox(0))
    a = np.array([3.0, 1, 1, 0.5, 0, 0, 0, 0])
    u = binomial(generator, 100_000, directions, 8)
    s2 = (np.einsum("npi,npj,i->nj", u, u, a) / directions) ** 2
    shares = a**2 / (a @ a)
    expected = (a @ a) / directions * learned.signal(shares, directions) ** 2
    error = s2.std(0) / np.sqrt(len(s2))
    assert (np.abs(s2.mean(0) - expected) < 4 * error).all()


def rest(gradient, nu, directions, rounds, generator):
    """h by the rule itself, from a gradient that does not move."""
    h = np.full(len(gradient), learned.resting_level(gradient @ gradient, directions))
    for _ in range(rounds):
        u = binomial(generator, directions, len(gradient))
        g = u @ (gradient / np.sqrt(h))
        s = g @ u / directions
        h = (1 - nu) * h + nu * s**2 / h
    return h


@pytest.mark.parametrize(("nu", "directions"), [(0.05, 5), (0.01, 5), (0.02, 20)])
def test_h_rests_and_scatters_as_predicted(nu, directions):
    generator = np.random.Generator(np.random.Philox(1))
    gradient = generator.normal(size=500)
    drawn = [rest(gradient, nu, directions, round(2 / nu), generator) for _ in range(30)]
    squares = np.array([(h.std() / h.mean()) ** 2 for h in drawn])
    expected = learned.scatter(nu, learned.step_noise(directions))
    error = squares.std() / np.sqrt(len(squares))
    assert abs(squares.mean() - expected**2) < 4 * error + 0.1 * expected**2
    levels = np.array([h.mean() for h in drawn])
    rests_at = learned.resting_level(gradient @ gradient, directions)
    assert levels.mean() == pytest.approx(rests_at, abs=4 * levels.std() / np.sqrt(len(levels)))


def test_few_weights_are_told_apart_as_predicted_and_many_are_not():
    generator = np.random.Generator(np.random.Philox(2))
    for d, visible in ((60, True), (3000, False)):
        gradient = generator.normal(size=d) ** 3
        shares = gradient**2 / (gradient @ gradient)
        nu, p = 0.01, 20
        found = np.mean(
            [rank_correlation(rest(gradient, nu, p, 250, generator), shares).rho for _ in range(4)]
        )
        expected = learned.expected_correlation(
            shares, shares, nu=nu, directions=p, noise=learned.step_noise(p)
        )
        assert found == pytest.approx(expected, abs=0.12 if visible else 0.03)
        assert (expected > 0.4) == visible


def test_the_rounds_needed_grow_as_the_square_of_d_over_p():
    generator = np.random.Generator(np.random.Philox(3))
    needed = {}
    for d, p in ((2000, 5), (20_000, 5), (20_000, 50)):
        weights = generator.normal(size=d) ** 2
        shares = weights / weights.sum()
        needed[d, p] = learned.rounds_needed(shares, shares, 0.3, directions=p)
    assert needed[20_000, 5] / needed[2000, 5] == pytest.approx(100, rel=0.25)
    ratio = (50.875 / 5.875) ** 2 * learned.step_noise(5) / learned.step_noise(50)
    assert needed[20_000, 5] / needed[20_000, 50] == pytest.approx(ratio, rel=0.25)
    unrelated = generator.normal(size=2000)
    shares = np.abs(generator.normal(size=2000))
    assert learned.rounds_needed(shares / shares.sum(), unrelated, 0.3, directions=5) is None


@pytest.fixture(scope="module")
def standing(tmp_path_factory):
    """HiSo on digits with lr = 0 for 150 rounds, and its log."""
    torch.set_num_threads(1)
    inputs, labels, _, _ = images.digits()
    rules = RoundSettings(clients=4, sample=2, steps=1, directions=5, mu=1e-3)
    federation = Federation(
        rules, HiSo(lr=0.0, nu=0.05, floor=0.0), inputs[:200], labels[:200], 8, seed=0
    )
    path = tmp_path_factory.mktemp("standing") / "ledger.sqlite"
    federation.run(path, 100, Silent(), "")
    federation.run(path, 150, Silent(), "")  # goes on where the log ends
    return federation, path


def test_a_real_logs_h_scatters_as_predicted_and_as_on_another_seed(standing):
    federation, path = standing
    with federation.ledger(path) as ledger:
        assert ledger.position == 150
        weights, h = state_at(federation, ledger, 150)
        _, other = state_at(federation, ledger, 150, seed=99)
        moments = [state_at(federation, ledger, at)[1] for at in range(60, 151, 5)]
        noise = learned.step_noise_of(ledger.records(50))
    start = torch.nn.utils.parameters_to_vector(federation.module().parameters())
    assert torch.equal(weights, start.detach())  # lr = 0
    # With a memory of ten rounds single moments differ: over 100 rounds they come to the formula.
    spread = np.sqrt(np.mean([(x.std() / x.mean()) ** 2 for x in moments]))
    assert spread == pytest.approx(learned.scatter(0.05, noise), rel=0.15)
    assert other.std() / other.mean() == pytest.approx(h.std() / h.mean(), rel=0.1)
    assert other.mean() == pytest.approx(h.mean(), rel=0.05)
    assert abs(rank_correlation(h, other).rho) < 4 / np.sqrt(len(h))


def test_batches_are_those_of_the_rounds(standing):
    federation, path = standing
    with federation.ledger(path) as ledger:
        batches = federation.batch_rows(ledger, 2)
        clients = [row.clients for row in ledger.rounds(148)]
    shard = federation.shards()[clients[1][0]]
    picked = choose(0, "batch", shard.client, 149, 0, size=50, count=8)
    assert batches[1][0] == tuple(shard.encoded[i] for i in picked)


def test_q_of_records_is_that_of_normal_scalars_for_normal_scalars():
    from hiso.core.record import Record

    generator = np.random.Generator(np.random.Philox(6))
    zeros = np.zeros(5)
    records = [
        Record(r, zeros.astype(np.uint16), zeros.astype(np.uint32), np.arange(5, dtype=np.uint16),
               generator.normal(size=5).astype(np.float32))
        for r in range(4000)
    ]  # fmt: skip
    assert learned.step_noise_of(records) == pytest.approx(learned.step_noise(5), rel=0.08)


@pytest.mark.parametrize("law", ["binomial", "gaussian"])
def test_the_fourth_moments_are_those_of_the_noise(law):
    u = direction(law, 7, round=0, step=0, stream=0, direction=0, tiles=range(100))
    found = (u.astype(float) ** 4).mean()
    assert abs(found - FOURTH_MOMENT[law]) < 4 * np.sqrt(96 / len(u))
