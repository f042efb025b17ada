"""Cards: texts for readers of an exported model or an adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hiso.core.identity import Identity
from hiso.export.adapter import FORMAT, Adapter, public_name
from hiso.export.load import Tuned
from hiso.export.task import task_of
from hiso.ring.ledger.runfile import Evaluation
from hiso.run.formatting import figure
from hiso.workloads.text.choice import Choice
from hiso.workloads.text.gguf import PACKAGED
from hiso.workloads.text.task import Task
from hiso.workloads.text.verbalizer import check_labels

_REVEALS = (
    "This adapter contains no examples and no losses. Its numbers are means over the clients that "
    "answered in a round (possibly a single client). A number is the slope of the loss along a "
    "random direction that everybody can compute, the curvature along it, or a step computed from "
    "both. So the numbers are functions of private data. Anyone with the base model can rebuild "
    "the model after every round, and can guess at the data of a round from its changes. The "
    "identity has "
    "hashes of the data and of the partition: anyone who has exactly the same data can tell that "
    "they were used. hiso makes no claim of privacy."
)
_OWN_STREAMS = (
    " In this run each client had its own directions: the streams are client numbers plus one, "
    "and each scalar comes from one client."
)


@dataclass(frozen=True)
class Figures:
    """Data from a run's folder other than its log.

    Attributes:
        settings: The current settings.
        source: A description of the source of the data; empty if it is not known.
        evaluations: All evaluations.
    """

    settings: Mapping[str, Any]
    source: str
    evaluations: Sequence[Evaluation]


def model_card(log: Adapter, tuned: Tuned, figures: Figures | None, *, peft: bool = False) -> str:
    """A README.md in Markdown with Hugging Face's front matter, without paths of this machine.

    Args:
        log: The log that was replayed.
        tuned: The resulting model.
        figures: Data from the run's folder; None for an adapter, which has none.
        peft: Whether the folder holds a PEFT adapter instead of the whole model.
    """
    task, base = task_of(log.identity), public_name(log.base)
    kind = "text-generation" if tuned.lm.classes is None else "text-classification"
    library = "peft" if peft else "transformers"
    hub = [f"base_model: {base}"] if base and base not in PACKAGED else []
    parts = [
        "\n".join(["---", f"library_name: {library}", f"pipeline_tag: {kind}", *hub]),
        "tags: [hiso, federated-learning, zeroth-order]\n---\n",
        f"# {base or 'A language model'}, fine-tuned on {task.name} by a federation\n",
        "Weights are float32. Licences are those of the base model and of the data.\n",
        _section("Use", _biases(task, tuned) + _use(log, task, tuned, peft)),
        _section("Data", _data(log, figures)),
        _section("Method", _method(log, figures)),
        _section("Metrics", _metrics(log, figures)),
        _section("How it was made", _origin(log, tuned, peft)),
    ]
    return "\n".join(parts)


def adapter_card(adapter: Adapter) -> dict[str, Any]:
    """The content of an adapter's JSON card, for readers and scripts; hiso does not read it."""
    identity = adapter.identity
    facts = json.loads(identity.text)
    streams = {int(stream) for record in adapter.records for stream in record.stream}
    reveals = _REVEALS + (_OWN_STREAMS if streams - {0} else "")
    train = {} if identity.facts.get("train") is None else {"train": identity.facts["train"]}
    return {
        "kind": "hiso adapter",
        "format": FORMAT,
        "formats": facts["formats"],
        "hiso": version("hiso"),
        "base": {"name": public_name(adapter.base), **facts["model"]},
        "task": identity.task,
        **train,
        "method": facts["method"],
        "hyper_at_end": adapter.hyper,
        "noise": identity.noise,
        "seed": identity.seed,
        "clients": identity.clients,
        "rounds": adapter.position,
        "scalars": sum(record.scalars for record in adapter.records),
        "run": identity.run,
        "chain": adapter.chain.hex(),
        "digest_before": f"{adapter.before:016x}",
        "digest_after": f"{adapter.after:016x}",
        "use": "hiso apply THIS_FOLDER --model BASE --out FOLDER, or hiso.load(BASE, THIS_FOLDER)",
        "reveals": reveals,
    }


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}\n"


def _biases(task: Task, tuned: Tuned) -> str:
    if tuned.biases is None:
        return ""
    each = ", ".join(
        f"{word.strip()} {bias:+.4g}" for word, bias in zip(task.labels, tuned.biases, strict=True)
    )
    return (
        "The tuned model is the weights in this folder and a bias of each label, which is added to "
        f"its score: {each}. Programs that read only the weights do not use it.\n\n"
    )


def _use(log: Adapter, task: Task, tuned: Tuned, peft: bool) -> str:
    filled = ", ".join(f'{name}="…"' for name in task.columns)
    classifier = tuned.lm.classes is not None
    auto = "AutoModelForSequenceClassification" if classifier else "AutoModelForCausalLM"
    lines = [
        *(["from peft import PeftModel"] if peft else []),
        f"from transformers import {auto}, AutoTokenizer",
        "",
        'folder = "."  # this folder, or its name on the Hugging Face hub',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        *_loading(auto, log.base if peft else None),
        f"prompt = {json.dumps(task.template)}.format({filled})",
        *_inputs(task),
    ]
    verbalizer = check_labels(task, tuned.tokenizer) if task.labels and not classifier else None
    if classifier or (verbalizer is not None and verbalizer.mode == "token"):
        lines.append(f"words = {json.dumps(task.labels)}")
        if verbalizer is not None:
            lines.append(f"first = {verbalizer.first}  # the tokens that the words begin with")
        lines.append(f"scores = model(**inputs).logits[0{'' if classifier else ', -1, first'}]")
        if tuned.biases is not None:
            lines.append(f"scores = scores + scores.new_tensor({tuned.biases.tolist()})")
        lines.append("print(words, scores.softmax(-1).tolist())")
    else:
        lines.append("print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))")
    return "\n".join(["```python", *lines, "```"])


def _loading(auto: str, base: str | None) -> list[str]:
    """Code that loads the model, or the base model and an adapter of PEFT."""
    if base is None:
        return [f"model = {auto}.from_pretrained(folder)"]
    name = public_name(base)
    named = name if name and name not in PACKAGED else "BASE MODEL"
    return [
        f'base = {auto}.from_pretrained("{named}")  # in float32',
        "model = PeftModel.from_pretrained(base, folder)",
    ]


def _inputs(task: Task) -> list[str]:
    if task.chat is None:
        return ['inputs = tokenizer(prompt, return_tensors="pt")']
    return [
        f"prompt = {json.dumps(task.chat.before)} + prompt + {json.dumps(task.chat.after)}",
        'inputs = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")',
    ]


def _data(log: Adapter, figures: Figures | None) -> str:
    facts = log.identity.data
    lines = [f"Texts were cut to {facts['max_length']} tokens."]
    if log.identity.partition is None:
        lines.append("Each site had its own data, about which nothing is known here.")
    elif figures is not None:
        lines.insert(0, f"Source: {_source(figures)}.")
    if "fingerprint" in facts:
        lines.append(f"SHA-256 of the examples: `{facts['fingerprint']}`.")
    return " ".join(lines)


def _source(figures: Figures) -> str:
    """The source of the data, without the path of a local file."""
    data = figures.settings.get("data")
    if data is None:
        return figures.source or "the task's own data set"
    if data.startswith("own:"):
        return "Python objects"
    return public_name(data.partition(":")[0]) or f"a local file or folder, {Path(data).name}"


def _method(log: Adapter, figures: Figures | None) -> str:
    identity = log.identity
    hyper = ", ".join(f"{name} = {value:g}" for name, value in log.hyper.items())
    directions = max((int(r.direction.max()) + 1 for r in log.records), default=0)
    told = (
        ""
        if figures is None
        else f", of which {figures.settings['sample']} were sampled in a round"
    )
    return (
        f"{_trained(identity)}`{identity.method.name}` ({hyper} at the end), {log.position} "
        f"rounds, {directions} directions, batches of {identity.batch_size}, {identity.clients} "
        f"clients{told}, forward passes in {identity.dtype}, seed {identity.seed}. Clients sent "
        f"scalars, and no tensors: the log has {sum(r.scalars for r in log.records):,}."
    )


def _trained(identity: Identity) -> str:
    """What of the model was trained, if not all was."""
    choice = Choice.of(identity.facts, identity.model)
    if choice.full:
        return ""
    facts = {"rank": choice.rank, "alpha": choice.alpha}
    told = [f"{name} {value}" for name, value in facts.items() if value is not None]
    told += list(choice.targets or ())
    more = f" ({', '.join(told)})" if told else ""
    return f"Trained: `{choice.kind}`{more}. "


def _metrics(log: Adapter, figures: Figures | None) -> str:
    known = [] if figures is None else figures.evaluations
    rows = [
        f"| {e.split} | {e.position} | {name} | {figure(value)} |"
        for e in known
        if e.position in (0, log.position) and not e.split.startswith("client")
        for name, value in e.metrics.items()
    ]
    if not any(e.position == log.position for e in known):
        return "None were measured at this position: `hiso eval RUN --position N` does."
    return "\n".join(["| split | after rounds | metric | value |", "|---|---|---|---|", *rows])


def _origin(log: Adapter, tuned: Tuned, peft: bool) -> str:
    rows = {
        "hiso": version("hiso"),
        "run": log.identity.run,
        "base model": json.dumps(log.identity.model),
        "digest of the base": f"{tuned.before:016x}",
        "digest of this model": f"{tuned.digest:016x}",
        "chain hash of the log": log.chain.hex(),
    }
    text = (
        "By replay: the scalars of the log were folded into the base model. Anyone with the base "
        "model and the log gets the same weights, bit for bit, and the same digest.\n\n"
    )
    if Choice.of(log.identity.facts, log.identity.model).adapts and not peft:
        text += "These are the weights of the adapters; merging them here may round otherwise.\n\n"
    return text + "\n".join(["| | |", "|---|---|", *(f"| {k} | `{v}` |" for k, v in rows.items())])
