"""metrics.jsonl and summary.json: what is written is what is read, and older files are read too."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiso.errors import ProtocolError
from hiso.ring.ledger.runfile import Evaluation
from hiso.run.folder import RunFolder
from hiso.run.results import (
    Round,
    Summary,
    decode_line,
    decode_summary,
    encode_line,
    encode_summary,
    in_order,
)

counts = st.integers(0, 2**53)
numbers = st.floats(allow_nan=False, allow_infinity=False)
names = st.text(st.characters(codec="ascii", categories=["Ll"]), min_size=1)
metrics = st.dictionaries(names.filter(lambda n: n not in ("kind", "position", "split")), numbers)
rounds = st.builds(
    Round,
    round=counts,
    loss=st.none() | numbers,
    clients=st.lists(counts),
    bytes_up=counts,
    bytes_down=counts,
    passes=st.none() | counts,
    seconds=st.none() | numbers,
    forward_seconds=st.none() | numbers,
)
evaluations = st.builds(Evaluation, position=counts, split=names, metrics=metrics)
plain = st.dictionaries(names, st.none() | st.booleans() | counts | numbers | names)
KINDS = {
    "run": names,
    "digest": st.none() | names,
    "chain": st.none() | names,
    "data": names,
    "machine": plain,
    "settings": plain,
    "per_round_and_worker": metrics,
    "metrics_before": metrics,
    "metrics_after": metrics,
    **dict.fromkeys(("accuracy_before", "accuracy_after"), st.none() | numbers),
    **dict.fromkeys(("loss_before", "loss_after"), st.none() | numbers),
    **dict.fromkeys(("seconds_per_round", "forward_seconds_per_round"), st.none() | numbers),
    **dict.fromkeys(("peak_gpu_memory_bytes", "sent_bytes_up"), st.none() | counts),
    "sent_bytes_down": st.none() | counts,
}
summaries = st.builds(Summary, **{f.name: KINDS.get(f.name, counts) for f in fields(Summary)})
A_ROUND = {
    "kind": "round", "round": 0, "loss": 0.5, "clients": [1], "bytes_up": 4, "bytes_down": 0
}  # fmt: skip


@given(rounds | evaluations)
def test_a_line_is_read_as_it_was_written(line):
    assert decode_line(json.loads(json.dumps(encode_line(line)))) == line


@given(summaries)
def test_a_summary_is_read_as_it_was_written(summary):
    assert decode_summary(json.loads(json.dumps(encode_summary(summary)))) == summary


def test_a_line_of_before_has_no_passes_and_no_times():
    assert decode_line(A_ROUND) == Round(0, 0.5, [1], 4, 0)


def test_what_a_later_version_adds_is_passed_over():
    assert decode_line({**A_ROUND, "colour": "blue"}) == decode_line(A_ROUND)


@pytest.mark.parametrize(
    "line",
    [
        [],
        {},
        {"kind": "pause"},
        {**A_ROUND, "clients": None},
        {**A_ROUND, "round": "first"},
        {key: value for key, value in A_ROUND.items() if key != "bytes_up"},
        {"kind": "evaluation", "position": 0, "loss": 0.5},
        {"kind": "evaluation", "position": 0, "split": "dev", "loss": "low"},
    ],
)
def test_a_line_that_hiso_does_not_write_is_refused(line):
    with pytest.raises(ProtocolError):
        decode_line(line)


def test_a_summary_that_lacks_a_key_is_refused():
    with pytest.raises(ProtocolError, match="digest"):
        decode_summary({"run": "r"})


def test_evaluations_stand_before_the_round_at_their_position():
    first, second = Round(0, 0.5, [0], 0, 0), Round(1, 0.4, [0], 0, 0)
    before, after = Evaluation(0, "dev", {}), Evaluation(1, "dev", {})
    assert in_order([first, second], [after, before]) == [before, first, after, second]


@given(st.lists(evaluations, max_size=3), st.integers(0, 3), st.integers(0, 200))
def test_metrics_are_read_whole_or_up_to_a_half_written_line(tmp_path_factory, told, count, cut):
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    done = [Round(n, 0.5, [0], 4, 4) for n in range(count)]
    folder.write_metrics(done, told)
    assert folder.read_metrics() == (done, sorted(told, key=lambda e: e.position))
    text = folder.metrics.read_text()
    folder.metrics.write_text(text[: max(0, len(text) - cut)])
    if cut < len(text.splitlines()[-1] if text else ""):  # only the last line is hurt
        lines = len(folder.read_metrics()[0]) + len(folder.read_metrics()[1])
        assert lines in (count + len(told) - 1, count + len(told))


def test_a_gap_in_the_rounds_is_refused(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_metrics([Round(1, 0.5, [0], 4, 4)], [])
    with pytest.raises(ProtocolError):
        folder.read_metrics()
