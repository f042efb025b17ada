"""The facts of a run that goes on, as metrics of Prometheus."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from hiso.run.watch import Watched


def registry_of(w: Watched) -> CollectorRegistry:
    """A registry with all metrics of the run at this moment."""
    registry = CollectorRegistry()
    registry.register(_Facts(w))
    return registry


class _Facts(Collector):
    def __init__(self, w: Watched) -> None:
        self._watched = w

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        return [*_of_the_run(self._watched), *_of_clients(self._watched)]


def _of_the_run(w: Watched) -> Iterator[Metric]:
    if w.run is not None:
        yield InfoMetricFamily("hiso_run", "The run that is watched.", value={"run": w.run})
    yield CounterMetricFamily("hiso_rounds", "Committed rounds.", w.rounds)
    gauges = (
        ("hiso_rounds_planned", "Rounds after which the run ends.", w.planned),
        ("hiso_finished", "Whether the run is finished.", w.finished),
        ("hiso_aborted_attempts", "Aborted attempts at the open round.", w.aborted),
        ("hiso_round_seconds", "Median time of the last rounds.", w.seconds_per_round),
        ("hiso_remaining_seconds", "Time left at this rate.", w.seconds_left),
        ("hiso_last_round_timestamp_seconds", "Time of the last commit.", w.last_round_time),
        ("hiso_loss", "Mean loss of the last round's clients.", w.loss),
    )
    for name, text, value in gauges:
        if value is not None:
            yield GaugeMetricFamily(name, text, value)
    if w.evaluation is not None:
        e = w.evaluation
        yield GaugeMetricFamily(
            "hiso_evaluation_position", "Rounds before the last evaluation.", e.position
        )
        family = GaugeMetricFamily(
            "hiso_evaluation", "The last evaluation.", labels=("split", "metric")
        )
        for metric, value in e.metrics.items():
            family.add_metric((e.split, metric), value)
        yield family
    yield _bytes("hiso_scalar_bytes", "Bytes of scalars.", w.bytes_up, w.bytes_down)
    yield _bytes(
        "hiso_message_bytes", "Bytes of whole messages; 0 in a simulation.",
        w.message_bytes_up, w.message_bytes_down,
    )  # fmt: skip
    yield CounterMetricFamily("hiso_refusals", "Refused replies.", w.refusals)


def _bytes(name: str, text: str, up: int, down: int) -> Metric:
    family = CounterMetricFamily(name, text, labels=("direction",))
    family.add_metric(("up",), up)
    family.add_metric(("down",), down)
    return family


def _of_clients(w: Watched) -> Iterator[Metric]:
    here = {c.client: c.here for c in w.clients}
    replies = {c.client: c.reply for c in w.clients if c.reply is not None}
    gauges: tuple[tuple[str, str, Mapping[int, float | None]], ...] = (
        ("hiso_client_up", "Whether the client is connected.", here),
        (
            "hiso_client_last_round", "Last committed round with a valid reply of the client.",
            {c.client: c.last_round for c in w.clients},
        ),
        (
            "hiso_client_reply_seconds", "Time of the last reply, or of waiting for it in vain.",
            {client: reply.seconds for client, reply in replies.items()},
        ),
        (
            "hiso_client_slow", "Whether this is longer than the server waits.",
            {client: reply.slow for client, reply in replies.items()},
        ),
        (
            "hiso_client_quarantined", "Whether the client is not asked for a while.",
            {c.client: c.paused_until is not None for c in w.clients},
        ),
        (
            "hiso_client_quarantine_until_round", "Round for which it is asked again.",
            {c.client: c.paused_until for c in w.clients},
        ),
    )  # fmt: skip
    for name, text, values in gauges:
        family = GaugeMetricFamily(name, text, labels=("client",))
        for client, value in values.items():
            if value is not None:
                family.add_metric((str(client),), value)
        yield family
    faults = CounterMetricFamily("hiso_client_faults", "Faults.", labels=("client", "kind"))
    for c in w.clients:
        for kind, count in c.faults.items():
            faults.add_metric((str(c.client), kind), count)
    yield faults
