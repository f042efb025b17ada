import math

import pytest

from hiso.errors import SettingsError
from hiso.workloads.text.encode import encode
from hiso.workloads.text.examples import Example
from hiso.workloads.text.metrics import evaluate
from hiso.workloads.text.objective import Objective
from hiso.workloads.text.tasks import get_task

WORDS = ["The film was", " very good", " very bad", " and long", " great", ". It was", " terrible"]
SENTENCES = ["".join(WORDS[: 1 + i % 7]) + WORDS[i % 5] * (i % 4) for i in range(23)]


def prepared(lm, name):
    task = get_task(name)
    examples = [
        Example(
            task.prompt(dict.fromkeys(task.columns, text)),
            None if task.is_text else i % len(task.labels),
        )
        for i, text in enumerate(SENTENCES)
    ]
    return Objective(lm, task), encode(examples, task, lm.tokenizer, 100)


@pytest.mark.parametrize("name", ["sst2", "cb"])
def test_metrics_are_those_of_scikit_learn(llama, name):
    from sklearn.metrics import accuracy_score, f1_score

    objective, examples = prepared(llama, name)
    outcome = objective.measure(examples)
    labels, predictions = [e.label for e in examples], outcome.predictions.tolist()
    assert len(set(predictions)) > 1
    result = evaluate(objective, examples, 4)
    assert result["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert result["f1"] == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert result["loss"] == pytest.approx(sum(outcome.losses) / 23, abs=1e-5)


@pytest.mark.parametrize("name", ["sst2", "cb", "text"])
def test_the_batch_size_changes_nothing(llama, name):
    objective, examples = prepared(llama, name)
    whole = evaluate(objective, examples, 100)
    for size in (1, 5, 23):
        assert evaluate(objective, examples, size) == pytest.approx(whole, rel=1e-5)


def test_free_text_has_a_perplexity(llama):
    objective, examples = prepared(llama, "text")
    result = evaluate(objective, examples, 8)
    assert set(result) == {"loss", "perplexity"}
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    outcome = objective.measure(examples)
    tokens = sum(outcome.weights)
    assert tokens == sum(len(e.ids) - 1 for e in examples)
    assert result["loss"] == pytest.approx(sum(outcome.losses) / tokens)


def test_progress_is_told_in_examples(llama):
    objective, examples = prepared(llama, "sst2")
    told = []
    evaluate(objective, examples, 10, on_batch=told.append)
    assert told == [10, 10, 3]


def test_nothing_to_evaluate_is_refused(llama):
    objective, examples = prepared(llama, "sst2")
    for arguments in (([], 4), (examples, 0)):
        with pytest.raises(SettingsError, match="cannot evaluate"):
            evaluate(objective, *arguments)
