"""The probe against analytic derivatives, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hiso.core.measure.probe import Probe, passes
from hiso.core.noise.point import Point
from hiso.errors import NonFiniteLoss


def run(probe: Probe, loss) -> list[Point]:
    asked = []
    while (point := probe.ask()) is not None:
        assert probe.ask() is point
        asked.append(point)
        probe.tell(loss(point))
    return asked


def quadratic(mu: float, slope: float = 3.0, curve: float = 4.0):
    """f along the line: 1 + slope·t + curve·t²/2, t = sign·mu·(p + 1)."""

    def loss(point: Point) -> float:
        t = point.sign * mu * (point.direction + 1)
        return 1.0 + slope * t + curve * t * t / 2

    return loss


def test_forward_difference_is_eq_8():
    probe = Probe(client=0, round=0, steps=2, directions=3, mu=0.5)
    asked = run(probe, quadratic(0.5))
    assert asked == [
        Point(0, k, 0, p, s) for k in (0, 1) for p, s in ((0, 0), (0, 1), (1, 1), (2, 1))
    ]
    t = 0.5 * np.arange(1, 4)
    assert np.allclose(probe.scalars, (3 * t + 2 * t * t) / 0.5)
    assert probe.loss == 1.0
    assert probe.curvature is None


def test_central_difference_cancels_curvature():
    probe = Probe(client=0, round=0, steps=1, directions=2, mu=0.5, scheme="central", stream=3)
    asked = run(probe, quadratic(0.5))
    assert asked == [Point(0, 0, 3, p, s) for p in (0, 1) for s in (1, -1)]
    assert probe.scalars.tolist() == [[3.0, 6.0]]


@pytest.mark.parametrize("scheme", ["forward", "central"])
def test_curvature_takes_one_more_scalar(scheme):
    probe = Probe(
        client=0, round=0, steps=1, directions=2, mu=0.5, scheme=scheme, with_curvature=True
    )
    asked = run(probe, quadratic(0.5))
    assert len(asked) == 5
    assert probe.scalars.tolist() == [[3.0, 6.0]]
    assert probe.curvature is not None
    assert probe.curvature.tolist() == [[4.0, 16.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_loss_names_client_round_and_direction(bad):
    probe = Probe(client=4, round=17, steps=1, directions=2, mu=1e-3)
    probe.tell(0.7)
    probe.tell(0.7)
    with pytest.raises(NonFiniteLoss, match=r"client 4 in round 17, local step 0, at direction 1"):
        probe.tell(bad)
    assert probe.ask() == Point(17, 0, 0, 1, 1)


def test_telling_too_much_is_a_defect():
    probe = Probe(client=0, round=0, steps=1, directions=1, mu=1e-3)
    run(probe, quadratic(1e-3))
    with pytest.raises(RuntimeError):
        probe.tell(1.0)


def test_mu_is_rounded_as_in_the_kernels():
    probe = Probe(client=0, round=0, steps=1, directions=1, mu=1e-3)
    assert probe.mu == float(np.float32(1e-3))


def test_the_reported_loss_is_that_of_the_first_batch():
    """Central differences have no loss at w itself: the mean around it, of the first step only."""
    central = Probe(client=0, round=0, steps=2, directions=2, mu=0.5, scheme="central")
    run(central, lambda point: point.step * 100 + point.direction * 10 + point.sign)
    assert central.loss == 5.0
    forward = Probe(client=0, round=0, steps=2, directions=2, mu=0.5)
    run(forward, lambda point: point.step * 100 + point.sign + 7.0)
    assert forward.loss == 7.0


def test_losses_of_any_float_type_are_subtracted_in_float64():
    losses = [0.7, 0.70001, 0.69998]
    scalars = []
    for kind in (float, np.float32, lambda x: np.float32(x)[()]):
        probe = Probe(client=0, round=0, steps=1, directions=2, mu=1e-3)
        for loss in losses:
            probe.tell(kind(float(np.float32(loss))))
        scalars.append(probe.scalars.tolist())
    assert scalars[0] == scalars[1] == scalars[2]


def test_a_scalar_beyond_float32_is_a_divergence():
    probe = Probe(client=3, round=5, steps=1, directions=1, mu=1e-3)
    probe.tell(0.0)
    with pytest.raises(NonFiniteLoss, match="client 3 in round 5, local step 0, direction 0"):
        probe.tell(1e37)


@pytest.mark.parametrize(
    "bad", [{"steps": 0}, {"directions": 0}, {"mu": 0.0}, {"mu": -1.0}, {"scheme": "centred"}]
)
def test_impossible_probes_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Probe(**{"client": 0, "round": 0, "steps": 1, "directions": 1, "mu": 1e-3, **bad})


def test_passes_are_as_many_as_a_probe_asks_for():
    for scheme in ("forward", "central"):
        for curvature in (False, True):
            for directions in (1, 2, 5):
                probe = Probe(
                    client=0, round=0, steps=1, directions=directions, mu=1e-3, scheme=scheme,
                    with_curvature=curvature,
                )  # fmt: skip
                asked = 0
                while probe.ask() is not None:
                    probe.tell(1.0)
                    asked += 1
                assert passes(directions, scheme, with_curvature=curvature) == asked
