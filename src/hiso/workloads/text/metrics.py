"""Loss, accuracy, F1, perplexity, and scores of written answers over a whole split."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from hiso.core.measure.outcome import Outcome
from hiso.errors import SettingsError
from hiso.workloads.text.encode import Encoded
from hiso.workloads.text.generation import stop_tokens, write_answers
from hiso.workloads.text.objective import Objective
from hiso.workloads.text.scores import score

WITHOUT_BIAS = "accuracy_without_bias"


def evaluate(
    objective: Objective,
    examples: Sequence[Encoded],
    batch_size: int,
    on_batch: Callable[[int], None] | None = None,
    biases: NDArray[np.float64] | None = None,
) -> dict[str, float]:
    """Metrics over all `examples` at the model's present weights.

    Every example has the same weight (in the loss of free text and answers, every token), so the
    result does not depend on `batch_size` except for rounding. In a task with answers the model
    also writes an answer to every example. The longest examples come first: this reduces padding,
    and a lack of memory shows at once.

    Args:
        objective: Model and task.
        examples: The examples.
        batch_size: Number of examples per forward pass.
        on_batch: Called after each batch with the number of examples in it.
        biases: Added to the labels' scores, float64 [C]; None for nothing.

    Returns:
        "loss", and for a classification task "accuracy" and macro "f1" (the mean over the labels
        that occur or were predicted), for free text "perplexity", for answers the means of the
        task's own scores. With `biases`, also "accuracy_without_bias", the accuracy with the
        weights alone.

    Raises:
        SettingsError: There are no examples, or `batch_size` is not positive.
    """
    if not examples or batch_size < 1:
        raise SettingsError(
            f"cannot evaluate {len(examples)} examples in batches of {batch_size}: both must be "
            "1 or more."
        )
    order = sorted(range(len(examples)), key=lambda i: -len(examples[i].ids))
    task, written = objective.task, list[str]()
    stops = stop_tokens(objective.lm) if task.answers else frozenset[int]()
    plain: list[Outcome] = []
    for start in range(0, len(order), batch_size):
        batch = [examples[i] for i in order[start : start + batch_size]]
        plain.append(objective.measure(batch))
        if task.answers:
            prompts = [example.ids[: example.start] for example in batch]
            written += write_answers(objective.lm, prompts, task.answer_tokens, stops)
        if on_batch is not None:
            on_batch(len(batch))
    outcomes = [outcome.shifted(biases) for outcome in plain]
    loss = math.fsum(x for o in outcomes for x in o.losses) / sum(o.weights.sum() for o in outcomes)
    if task.answers:
        golds = [examples[i].answers for i in order]
        return {"loss": loss, **score(task.metrics, written, golds)}
    if not task.labels:
        return {"loss": loss, "perplexity": math.exp(loss) if loss < 700 else math.inf}
    pairs = _pairs(outcomes)
    found = {"loss": loss, "accuracy": _accuracy(pairs), "f1": _macro_f1(pairs)}
    return found if biases is None else found | {WITHOUT_BIAS: _accuracy(_pairs(plain))}


def _pairs(outcomes: Sequence[Outcome]) -> list[tuple[int, int]]:
    """The right label and the predicted one of each example."""
    return [
        (int(label), int(prediction))
        for outcome in outcomes
        for label, prediction in zip(outcome.labelled()[1], outcome.predictions, strict=True)
    ]


def _accuracy(pairs: Sequence[tuple[int, int]]) -> float:
    return sum(label == prediction for label, prediction in pairs) / len(pairs)


def _macro_f1(pairs: Sequence[tuple[int, int]]) -> float:
    scores: list[float] = []
    for name in {number for pair in pairs for number in pair}:
        hits = sum(pair == (name, name) for pair in pairs)
        uses = sum((label == name) + (prediction == name) for label, prediction in pairs)
        scores.append(2 * hits / uses)
    return math.fsum(scores) / len(scores)
