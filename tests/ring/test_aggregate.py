from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiso.core.method.registry import HiZoo, SubspaceNewton, ZoSgd
from hiso.errors import ProtocolError
from hiso.ring.aggregate import aggregate
from hiso.ring.messages import Reply, paper_bytes


def reply(client: int, g: np.ndarray, kappa: np.ndarray | None = None, examples: int = 1) -> Reply:
    return Reply("run", 3, client, b"", 0, g, kappa, 1.0, examples)


@st.composite
def rounds(draw: st.DrawFn) -> list[Reply]:
    clients = draw(st.lists(st.integers(0, 99), min_size=1, max_size=5, unique=True))
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = draw(st.sampled_from([1e-30, 1.0, 1e30]))

    def numbers() -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    return [reply(i, numbers(), numbers(), int(rng.integers(1, 10**6))) for i in clients]


modes = st.tuples(st.sampled_from(["plain", "examples"]), st.booleans())


@given(rounds(), modes, st.randoms())
def test_the_order_of_replies_is_immaterial(replies, mode, random):
    facts = {"weighting": mode[0], "per_client": mode[1], "changes": {}, "method": HiZoo()}
    first = aggregate(3, replies, **facts).to_bytes()
    random.shuffle(replies)
    assert aggregate(3, replies, **facts).to_bytes() == first


@given(rounds(), modes)
def test_every_term_equals_a_float64_oracle(replies, mode):
    weighting, per_client = mode
    record = aggregate(
        3, replies, weighting=weighting, per_client=per_client, changes={"lr": 0.5}, method=HiZoo()
    )
    order = sorted(replies, key=lambda r: r.client)
    steps, directions = replies[0].scalars.shape
    lower_median = sorted(r.examples for r in order)[(len(order) - 1) // 2]
    wt = [min(r.examples, 10 * lower_median) if weighting == "examples" else 1 for r in order]
    expected = []
    for k in range(steps):
        if per_client:
            for w, r in zip(wt, order, strict=True):
                for p in range(directions):
                    c, kappa = (
                        np.float32(w * float(a[k, p]) / sum(wt) / directions)
                        for a in (r.scalars, r.curvature)
                    )
                    expected.append((k, r.client + 1, p, c, kappa))
        else:
            for p in range(directions):
                c, kappa = (
                    np.float32(
                        sum(w * float(a[k, p]) for w, a in zip(wt, arrays, strict=True))
                        / sum(wt)
                        / directions
                    )
                    for arrays in ([r.scalars for r in order], [r.curvature for r in order])
                )
                expected.append((k, 0, p, c, kappa))
    columns = record.step, record.stream, record.direction, record.coefficient, record.curvature
    assert list(zip(*columns, strict=True)) == expected
    assert record.changes == {"lr": 0.5}
    assert record.round == 3


@given(rounds(), modes)
def test_one_client_alone_gives_its_scalars_over_p_rounded_once(replies, mode):
    only = replies[0]
    record = aggregate(3, [only], weighting=mode[0], per_client=mode[1], changes={}, method=ZoSgd())
    over_p = (only.scalars.astype(np.float64) / only.scalars.shape[1]).astype(np.float32)
    assert record.coefficient.tobytes() == over_p.tobytes()
    assert record.curvature is None
    assert set(record.stream.tolist()) == {only.client + 1 if mode[1] else 0}


def test_weights_are_the_numbers_of_examples():
    replies = [reply(0, np.float32([[1]]), examples=3), reply(1, np.float32([[5]]), examples=1)]
    shared = {"per_client": False, "changes": {}, "method": ZoSgd()}
    assert aggregate(3, replies, weighting="plain", **shared).coefficient.tolist() == [3.0]
    assert aggregate(3, replies, weighting="examples", **shared).coefficient.tolist() == [2.0]


@pytest.mark.parametrize("weighting", ["plain", "examples"])
def test_solved_scalars_are_not_divided_and_facts_are_averaged(weighting):
    replies = [
        replace(reply(0, np.float32([[1, 2]]), examples=3), facts={"t": 2.0}),
        replace(reply(1, np.float32([[5, -2]]), examples=1), facts={"t": 4.0}),
    ]
    shared = {"weighting": weighting, "changes": {}, "method": SubspaceNewton()}
    record = aggregate(3, replies, per_client=False, **shared)
    expected, t = ([3, 0], 3.0) if weighting == "plain" else ([2, 1], 2.5)
    assert record.coefficient.tolist() == expected
    assert record.facts == {"t": t}
    own = aggregate(3, replies, per_client=True, **shared)
    first, second = (3, 1) if weighting == "examples" else (2, 2)
    assert own.coefficient.tolist() == [first / 4, 2 * first / 4, 5 * second / 4, -2 * second / 4]
    with pytest.raises(ProtocolError, match="lacks facts"):
        aggregate(3, [replace(replies[0], facts={})], per_client=False, **shared)


def test_replies_that_do_not_fit_together_are_named():
    two = [reply(0, np.zeros((1, 2), np.float32)), reply(1, np.zeros((1, 3), np.float32))]
    facts = {"weighting": "plain", "per_client": False, "changes": {}}
    with pytest.raises(ProtocolError, match=r"\(1, 2\), \(1, 3\)"):
        aggregate(3, two, **facts, method=ZoSgd())
    with pytest.raises(ProtocolError, match=r"clients \[0, 0\]"):
        aggregate(3, two[:1] * 2, **facts, method=ZoSgd())
    with pytest.raises(ProtocolError, match="lacks curvature"):
        aggregate(3, two[:1], **facts, method=HiZoo())
    with pytest.raises(ProtocolError, match="needs replies"):
        aggregate(3, [], **facts, method=ZoSgd())


def test_paper_bytes_of_the_published_table():
    assert paper_bytes(1500, 1, 5) == 60_000
    assert paper_bytes(1, 3, 2) == 2 * 3 * 2 * 4
