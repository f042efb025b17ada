"""All settings of a run: flags, TOML keys and Python arguments."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from hiso.core.importing import import_method, is_path
from hiso.core.measure.backward import check_backward
from hiso.core.method.base import Feed, Method
from hiso.core.method.registry import METHODS, auto_lr
from hiso.errors import LoadError, SettingsError
from hiso.ring.ledger.runfile import RENAMED
from hiso.ring.round_settings import MOST_OVERSAMPLE, RoundSettings
from hiso.run.definition import OWN, Definition
from hiso.run.formatting import client_numbers
from hiso.workloads.text.choice import ALPHA, RANK, Choice
from hiso.workloads.text.tasks import TASKS

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=1, le=2**16)]
Hyper = Annotated[float | None, Field(ge=0, le=3.4e38, allow_inf_nan=False)]
ZeroIsNone = BeforeValidator(lambda value: None if value == 0 else value)


class Values(BaseModel):
    """The settings of a run, each checked separately; `Settings` also checks their combination."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        "smollm2",
        description="Packaged name, Hugging Face id, folder, or .gguf file; for images cnn or mlp.",
    )
    task: str = Field(
        "rotten_tomatoes",
        description="Name of a task, or package.module:name of your own task.",
    )
    data: str | None = Field(
        None,
        description="File, folder or Hugging Face id of data that replace the task's own data.",
    )
    task_definition: Definition | None = Field(
        None, description="Table: columns, prompt and label words of your own task."
    )
    max_length: Annotated[int, Field(ge=2)] = Field(
        64, description="Most tokens of an example; a longer prompt keeps its end."
    )
    prompt_style: Literal["plain", "chat"] = Field(
        "plain",
        description="plain: prompts unchanged; chat: as the user's turn in the tokenizer's chat "
        "template.",
    )
    train: str = Field(
        "full",
        description="Trained parameters: full, lora, ia3, bias, norm, last-N, head, or "
        "regex:PATTERN.",
    )
    lora_rank: Positive | None = Field(None, description=f"Rank of LoRA's A and B; default {RANK}.")
    lora_alpha: Positive | None = Field(
        None, description=f"Scale of LoRA: B·A is multiplied by alpha / rank; default {ALPHA}."
    )
    lora_targets: str | None = Field(
        None,
        description="Names of the layers with LoRA, separated by commas, or all-linear; "
        "default: PEFT's.",
    )
    frozen: Literal["dtype", "int8", "nf4"] = Field(
        "dtype",
        description="Precision of the frozen linear layers: that of dtype, or 8 or 4 bits.",
    )
    method: str = Field(
        "subspace_newton",
        description=f"One of {', '.join(METHODS)}; or package.module:Name of your own method.",
    )
    lr: Hyper | Literal["auto"] = Field(
        None,
        description="Learning rate; default: the method's own. auto: set from the "
        "curvature in every round.",
    )
    nu: Hyper = Field(None, description="Update rate ν of the diagonal h (hiso, hizoo).")
    eps: Hyper = Field(None, description="Constant ε added to dx² (hiso).")
    floor: Hyper = Field(None, description="Smallest value of the diagonal h (hiso, hizoo).")
    beta: Hyper = Field(None, description="Momentum factor (momentum).")
    ridge: Hyper = Field(
        None,
        description="Ridge, relative to the mean curvature; 0: set from P, sample and "
        "batch size (subspace_newton).",
    )
    feed: Feed | None = Field(
        None, description="Local steps from which h is updated: first, last or all."
    )
    normalise: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Update rate ν of a mean diagonal that divides lr; 0 for none."
    )
    label_bias: bool = Field(False, description="Also tune one bias for each label of the task.")
    logit_adjustment: bool = Field(
        False,
        description="Clients add the log of each label's share in their data to the scores "
        "that they measure.",
    )
    clients: Positive = Field(6, description="Number of clients M.")
    sample: Positive = Field(2, description="Clients sampled in each round, m.")
    oversample: Annotated[float, Field(ge=0, le=MOST_OVERSAMPLE)] = Field(
        0.0,
        description="Share of further clients that are asked in each round; the first sample "
        "clients that answer are enough.",
    )
    withdrawn: str = Field(
        "", description="Clients that have left and are never asked again: 3, or 2,5-7."
    )
    rounds: Positive = Field(100, description="Total number of rounds.")
    directions: Count = Field(11, description="Directions per local step, P.")
    local_steps: Count = Field(1, description="Local steps per round, τ.")
    batch_size: Positive = Field(16, description="Examples per client and local step.")
    mu: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] = Field(
        1e-3, description="Perturbation size μ; auto measures which value suits model and dtype."
    )
    scheme: Literal["forward", "central"] | None = Field(
        None, description="Finite differences; default: forward, or what mu = auto chooses."
    )
    per_client: bool = Field(False, description="Every client measures along its own directions.")
    backward_clients: Annotated[int, Field(ge=0)] = Field(
        0,
        description="This many clients, the first ones, use a backward pass instead of "
        "finite differences.",
    )
    weighting: Literal["plain", "examples"] = Field(
        "plain", description="Weights of the clients in the mean: equal, or by number of examples."
    )
    min_replies: Positive = Field(
        1, description="Smallest number of replies that completes a round."
    )
    partition: Literal["iid", "dirichlet", "column"] = Field(
        "iid", description="How the training examples are divided among clients."
    )
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1.0, description="Concentration of the Dirichlet partition."
    )
    partition_column: str | None = Field(
        None, description="Column for partition = column; each client gets the rows with one value."
    )
    seed: Annotated[int, Field(ge=0, lt=2**64)] = Field(
        0, description="Key of all randomness: directions, batches, sampling, partition."
    )
    noise: Literal["binomial", "gaussian"] = Field(
        "binomial", description="Distribution of the directions' elements."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of forward passes; weights stay float32."
    )
    memory: Literal["full", "lean"] = Field(
        "full",
        description="full: keep a perturbed copy of the whole model; lean: make it layer by layer.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Device of the model; auto takes a GPU if there is one."
    )
    joint: bool = Field(
        True, description="Clients that measure at the same point share a forward pass."
    )
    joint_directions: bool = Field(
        False,
        description="All directions of a local step share a forward pass; for train = lora.",
    )
    eval_every: Annotated[int, Field(ge=0)] = Field(
        20, description="Rounds between evaluations on the tuning split; 0 for none."
    )
    dev_examples: Annotated[Positive | None, ZeroIsNone] = Field(
        200, description="Number of examples used from the tuning split; 0 for all."
    )
    test_examples: Annotated[Positive | None, ZeroIsNone] = Field(
        None,
        description="Number of examples used from the test split, before and after; 0 for all.",
    )
    client_examples: Annotated[int, Field(ge=0)] = Field(
        0,
        description="Number of training examples of each client on which the final model "
        "is evaluated.",
    )
    keep: Literal["last", "best"] = Field(
        "last",
        description="Final model of a run: the one after the last round, or the one with "
        "the lowest loss on the tuning split.",
    )
    patience: Annotated[int, Field(ge=0)] = Field(
        0, description="Stop after this many evaluations without a new lowest loss; 0 for never."
    )
    divergence_factor: Annotated[Annotated[float, Field(gt=1)] | None, ZeroIsNone] = Field(
        3.0,
        description="Stop when the loss exceeds this many times the loss of the first "
        "rounds; 0 for never.",
    )
    clip: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0.0,
        description="A reply counts up to this many times the median size of the last 50 rounds' "
        "replies; 0 for no limit. A new run of hiso serve has 3.",
    )
    snapshot_every: Annotated[int, Field(ge=0)] = Field(
        0, description="Rounds between snapshots of the replica; 0 for none (replay works without)."
    )

    @field_validator("withdrawn", mode="before")
    @classmethod
    def _one_client(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="before")
    @classmethod
    def _name(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("task_definition") and "task" not in values:
            return {**values, "task": OWN}
        return values


class Settings(Values):
    """The settings of a run. Unknown keys are refused; omitted ones take the defaults here.

    Settings in `CHANGEABLE` may take a new value in an existing run; the others are fixed for the
    whole run.
    """

    @model_validator(mode="after")
    def _agree(self) -> Settings:
        problems: list[str] = []
        if self.method not in METHODS and not is_path(self.method):
            problems.append(f"method: unknown method {self.method!r}" + near(self.method, METHODS))
        else:
            try:
                settled = self.model_copy(update={"mu": 1.0}) if self.mu == "auto" else self
                method = self.make_method()
                settled.make_rounds(method)
                if self.normalise and ("h" in method.state or method.needs == "scores"):
                    problems.append(f"normalise: {self.method} has curvature of its own")
                if self.backward_clients:
                    check_backward(method, self.memory)
                    if self.label_bias or self.logit_adjustment:
                        problems.append(
                            "backward_clients: a backward pass cannot use adjusted scores"
                        )
            except LoadError as error:
                problems.append(f"method: {error}")
            except SettingsError as error:
                problems.append(str(error))
        try:
            self.make_choice()
        except SettingsError as error:
            problems.append(str(error))
        if self.frozen != "dtype" and (self.train == "full" or self.memory != "full"):
            problems.append(f"frozen = {self.frozen} needs memory = full, and not train = full")
        if self.joint_directions and (self.train != "lora" or self.memory != "full"):
            problems.append("joint_directions needs train = lora and memory = full")
        if self.backward_clients > self.clients:
            problems.append(
                f"backward_clients = {self.backward_clients} of clients = {self.clients}"
            )
        if (self.keep == "best" or self.patience) and not self.eval_every:
            problems.append("keep = best and patience need evaluations: set eval_every")
        if (self.partition == "column") != (self.partition_column is not None):
            problems.append("partition = column and partition_column go together")
        if self.task_definition is not None and (self.task in TASKS or ":" in self.task):
            problems.append(
                f"task = {self.task!r} and task_definition exclude each other: omit one, or "
                "give your own task another name"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def make_method(self) -> Method:
        """The method with the hyper-parameters that are set.

        Raises:
            SettingsError: A hyper-parameter is set that the method does not have.
            LoadError: The method is the user's own, and cannot be imported.
        """
        base = import_method(self.method) if is_path(self.method) else METHODS[self.method]()
        given = {key: getattr(self, key) for key in HYPER if getattr(self, key) is not None}
        auto = given.get("lr") == "auto"
        if auto:
            del given["lr"]
        alien = sorted(set(given) - set(base.hyper) - {"feed"})
        if alien:
            raise SettingsError(
                f"{', '.join(alien)}: {self.method} has no such hyper-parameter; it has "
                + ", ".join(base.hyper)
            )
        method = replace(base, **given)
        return auto_lr(method) if auto and not method.auto else method

    def make_choice(self) -> Choice:
        """The trained parameters.

        Raises:
            SettingsError: The value is unknown, or settings of LoRA are set for another `train`.
        """
        given = {key: getattr(self, key) for key in LORA if getattr(self, key) is not None}
        if self.train != "lora":
            if given:
                raise SettingsError(f"{', '.join(given)}: for train = lora, not {self.train}")
            return Choice(kind=self.train)
        named = self.lora_targets
        targets = None if named is None else tuple(part.strip() for part in named.split(","))
        rank, alpha = self.lora_rank or RANK, self.lora_alpha or ALPHA
        return Choice(kind="lora", rank=rank, alpha=alpha, targets=targets)

    def make_rounds(self, method: Method) -> RoundSettings:
        """The round settings for the server.

        Raises:
            SettingsError: The values do not give valid round settings.
            ValueError: `mu` must still be measured.
        """
        return RoundSettings(
            clients=self.clients,
            sample=self.sample,
            oversample=self.oversample,
            withdrawn=frozenset(client_numbers(self.withdrawn) if self.withdrawn else ()),
            steps=self.local_steps,
            directions=self.directions,
            mu=float(self.mu),
            scheme=self.scheme or "forward",
            per_client=self.per_client,
            weighting=self.weighting,
            min_replies=self.min_replies,
            divergence_factor=self.divergence_factor,
            clip=self.clip,
            normalise=self.normalise,
            hyper=method.hyper,
        )

    def with_hyper(self, method: Method) -> Settings:
        """The same settings, with the method's values for hyper-parameters that are not set."""
        known = {key: getattr(method, key) for key in HYPER if hasattr(method, key)}
        return self.model_copy(update=known | ({"lr": "auto"} if method.auto else {}))


AnyValues = TypeVar("AnyValues", bound=BaseModel)

HYPER = ("lr", "nu", "eps", "floor", "beta", "ridge", "feed")
"""Settings that belong to the method."""

LORA = ("lora_rank", "lora_alpha", "lora_targets")
"""Settings that describe LoRA."""

CHANGEABLE = frozenset(
    {
        "lr",
        "nu",
        "eps",
        "floor",
        "beta",
        "ridge",
        "mu",
        "scheme",
        "directions",
        "local_steps",
        "sample",
        "oversample",
        "withdrawn",
    }
    | {"rounds", "weighting", "min_replies", "eval_every", "dev_examples", "divergence_factor"}
    | {"clip"}
    | {"client_examples", "backward_clients", "keep", "patience"}
    | {"snapshot_every", "memory", "device", "model", "data"}
)
"""Settings that may change in an existing run; model and data may only get another path."""


def own_method(stored: Mapping[str, Any]) -> Method | None:
    """The user's own method, if settings name one by an import path; otherwise None.

    Raises:
        LoadError: The method cannot be imported.
    """
    path = str(stored.get("method"))
    return import_method(path) if is_path(path) else None


def near(word: str, known: Any) -> str:
    """A hint: ' (did you mean …?)', a list of known words, or the present name of a setting."""
    if word in RENAMED:
        return f"; it is called {RENAMED[word]} now"
    close = difflib.get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else f"; known: {', '.join(known)}"


def parse_settings(values: Mapping[str, Any], source: str = "settings") -> Settings:
    """Checks settings, and reports all problems at once.

    Raises:
        SettingsError: A key is unknown, or a value is out of range or contradicts another.
    """
    return parse(Settings, values, source)


def parse_values(values: Mapping[str, Any], source: str = "settings") -> Values:
    """Checks each setting separately.

    Raises:
        SettingsError: A key is unknown, or a value is out of range.
    """
    return parse(Values, values, source)


def parse(kind: type[AnyValues], values: Mapping[str, Any], source: str) -> AnyValues:
    """Checks settings of the class `kind`, and reports all problems at once.

    Raises:
        SettingsError: A key is unknown, or a value is out of range or contradicts another.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        lines = _problems(kind, values, error)
        raise SettingsError(f"{source}:\n" + "\n".join(f"  {line}" for line in lines)) from error


def _problems(
    kind: type[BaseModel], values: Mapping[str, Any], error: ValidationError
) -> list[str]:
    """All problems: first with single settings, then with the combination of the others."""
    lines: list[str] = []
    bad: set[str] = set()
    for problem in error.errors():
        key = ".".join(map(str, problem["loc"][:1]))
        bad.add(key)
        known = kind.model_fields
        if key == "task_definition" and (inner := problem["loc"][1:]):
            key, known = ".".join(map(str, (key, *inner))), Definition.model_fields
        if problem["type"] == "extra_forbidden":
            lines.append(f"{key}: unknown key" + near(key.rpartition(".")[2], known))
        elif problem["type"] == "value_error":
            lines += problem["msg"].removeprefix("Value error, ").splitlines()
        else:
            lines.append(f"{key} = {problem['input']!r}: {problem['msg']}")
            if key == "directions" and problem["input"] in ("shared", "per-client"):
                lines[-1] += " (directions is their number P; set per_client = true or false)"
    rest = {key: value for key, value in values.items() if key not in bad}
    if len(rest) < len(values):
        try:
            kind.model_validate(rest)
        except ValidationError as others:
            lines += _problems(kind, rest, others)
    return lines


def read_toml(path: Path) -> dict[str, Any]:
    """The keys of a TOML file of settings.

    Raises:
        SettingsError: The file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read settings from {path}: {error}") from error
