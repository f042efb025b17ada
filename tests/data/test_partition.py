import sys
from collections import Counter

import pytest

from hiso.data.partition import partition
from hiso.errors import SettingsError
from hiso.workloads.text.examples import Example

EXAMPLES = [Example(f"text {i}", int(i % 3 == 0), f"site {i % 7:02d}") for i in range(600)]


def divide(scheme, clients=6, alpha=1.0, column=None, seed=0, examples=EXAMPLES):
    return partition(examples, clients, scheme, alpha=alpha, column=column, seed=seed)


GROUPS = [example.group for example in EXAMPLES]


@pytest.mark.parametrize(
    ("scheme", "clients", "column"),
    [("iid", 6, None), ("iid", 600, None), ("dirichlet", 6, None), ("column", 7, GROUPS)],
)
def test_every_example_is_with_one_client_and_no_client_without(scheme, clients, column):
    shards = divide(scheme, clients, column=column)
    assert len(shards) == clients
    assert all(shards)
    assert sorted(i for shard in shards for i in shard) == list(range(600))
    assert all(shard == sorted(shard) for shard in shards)
    assert shards == divide(scheme, clients, column=column)


def test_the_seed_matters_where_there_is_chance():
    for scheme in ("iid", "dirichlet"):
        assert divide(scheme, seed=0) != divide(scheme, seed=1)
    assert divide("column", 7, column=GROUPS) == divide("column", 7, column=GROUPS, seed=1)


def test_iid_shards_are_even_and_mixed():
    shards = divide("iid")
    assert {len(shard) for shard in shards} == {100}
    for shard in shards:
        assert 15 < Counter(EXAMPLES[i].label for i in shard)[1] < 55


def test_alpha_makes_labels_uneven():
    def spread(alpha):
        shares = [
            sum(EXAMPLES[i].label or 0 for i in s) / len(s)
            for s in divide("dirichlet", alpha=alpha)
        ]
        return max(shares) - min(shares)

    assert spread(0.3) > 0.5 > 0.1 > spread(1000.0)


def test_a_column_is_one_client_per_value():
    shards = divide("column", 7, column=GROUPS)
    for number, shard in enumerate(shards):
        assert {EXAMPLES[i].group for i in shard} == {f"site {number:02d}"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "iid", "clients": 0}, "1 or more"),
        ({"scheme": "iid", "clients": 601}, "601 clients for 600 examples"),
        ({"scheme": "random"}, "use iid, dirichlet or column"),
        ({"scheme": "dirichlet", "alpha": 0.0}, "positive number"),
        ({"scheme": "dirichlet", "alpha": float("nan")}, "positive number"),
        ({"scheme": "dirichlet", "clients": 300, "alpha": 0.01}, "(?s)Raise alpha, use fewer"),
        ({"scheme": "column"}, "value for every example"),
        ({"scheme": "column", "column": [None] * 600}, "value for every example"),
        ({"scheme": "column", "column": GROUPS, "clients": 5}, "set clients to 7"),
        ({"scheme": "dirichlet", "examples": [Example("a", None)] * 9}, "no labels to divide by"),
    ],
)
def test_what_cannot_be_divided_is_explained(arguments, message):
    with pytest.raises(SettingsError, match=message):
        divide(**arguments)


def test_nothing_is_printed_and_nothing_is_sent(capfd):
    divide("column", 7, column=GROUPS)
    divide("dirichlet")
    assert capfd.readouterr() == ("", "")
    telemetry = sys.modules["flwr_datasets.common.telemetry"]
    assert telemetry.state["executor"] is None
