"""What a site's operator wants to know before the first day: `hiso worker check`.

It loads model and data, times one local step, and asks the SuperLink whether it knows the key. It
takes part in nothing, and changes no file.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from hiso.core.measure.backward import Probing, check_backward
from hiso.data.batches import Shard
from hiso.data.files import read_rows
from hiso.errors import HisoError, ProtocolError, SettingsError
from hiso.flower.access import Access
from hiso.flower.envelope import Envelope, join
from hiso.flower.fleet import Away, Fleet
from hiso.flower.server_app import Pace, check
from hiso.flower.site_file import SITE, read_site
from hiso.ring.answers import read_sent
from hiso.ring.client import Client
from hiso.ring.messages import SCALAR_BYTES, Plan, Reply
from hiso.ring.site import ANSWERS
from hiso.ring.site_settings import SiteSettings
from hiso.ring.wire import reply_to_bytes
from hiso.run.identity import deployed
from hiso.run.observer import Observer, Silent
from hiso.run.settings import Settings
from hiso.run.summary import peak_memory
from hiso.run.workload.base import Workload, adjustments, make_replica
from hiso.run.workload.load import load_workload
from hiso.run.workload.objects import NOTHING
from hiso.run.workload.text import Words
from hiso.workloads.text.examples import find_files
from hiso.workloads.text.task import Task
from hiso.workloads.vision.images import DATA_SETS


@dataclass(frozen=True)
class Problem:
    """Something that would stop a run.

    Attributes:
        where: The part that was checked.
        error: The kind of error, as `docs/errors.md` lists it.
        reason: What is wrong, and what to do.
        code: The exit code of this kind of error.
    """

    where: str
    error: str
    reason: str
    code: int


@dataclass
class Findings:
    """What was found: tables by name, and everything that would stop a run.

    Attributes:
        tables: Values by name, by the table's title; a part that could not be checked is missing.
        problems: The problems, in the order in which the parts were checked.
    """

    tables: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    problems: list[Problem] = field(default_factory=list[Problem])

    @contextmanager
    def part(self, where: str) -> Iterator[None]:
        """Notes an error of the block as a problem, and goes on behind the block."""
        try:
            yield
        except HisoError as error:
            self._add(where, type(error), str(error))
        except torch.OutOfMemoryError as error:
            self._add(where, SettingsError, f"the GPU's memory is too small: {error}")
        except Away as error:
            self.problems.append(Problem(where, "Away", str(error), 6))

    def _add(self, where: str, kind: type[HisoError], reason: str) -> None:
        self.problems.append(Problem(where, kind.__name__, reason, kind.exit_code))

    def as_json(self) -> dict[str, Any]:
        """The tables and, under `problems`, a list."""
        return {**self.tables, "problems": [asdict(problem) for problem in self.problems]}


def check_site(
    settings: Settings,
    clients: Sequence[int],
    folder: Path,
    access: Access | None,
    *,
    share: bool,
    probe: Probing,
    observer: Observer,
) -> Findings:
    """Everything that can be found out at a site before it takes part in a run.

    Args:
        settings: The settings.
        clients: The numbers of the site's clients.
        folder: The worker's folder, which need not exist.
        access: How to reach the SuperLink; None to leave it alone.
        share: Use only the clients' shares of the data.
        probe: How the clients compute their scalars.
        observer: Receives the progress.
    """
    found = Findings()
    with found.part("settings"):
        check(settings, Pace(1.0, 1))
        if probe == "backward":
            check_backward(settings.make_method(), settings.memory)
    site = SiteSettings()
    with found.part(SITE):
        site, _ = read_site(folder, settings)
        found.tables[SITE] = {
            name: None if value == math.inf else value
            for name, value in site.model_dump(mode="json").items()
        }
    workload, own = None, None if share else tuple(clients)
    with found.part("model and data"):
        workload = load_workload(settings, settings.make_method(), observer, own=own)
    if workload is None:
        _look_apart(found, settings, observer)
    else:
        shards = [shard for shard in workload.shards if shard.client in clients]
        with found.part("data"):
            found.tables["data"] = _describe(settings, workload, shards)
        if settings.mu != "auto":
            with found.part("a local step"), observer.phase("timing a local step"):
                found.tables["a round"] = _measure(settings, workload, shards, probe, site)
            with found.part(SITE):
                _compare(settings, workload, shards, folder, site)
    if access is not None:
        with found.part("SuperLink"), observer.phase(f"asking {access.address}"):
            found.tables["SuperLink"] = _ask(access)
    return found


def _look_apart(found: Findings, settings: Settings, observer: Observer) -> None:
    """Loads data and model one by one, because the first error has hidden the others."""
    known = {problem.reason for problem in found.problems}
    if settings.task in DATA_SETS:
        return
    apart = Findings()
    with apart.part("data"), observer.phase("loading data"):
        NOTHING.load_splits(settings, NOTHING.load_task(settings))
    with apart.part("model"), observer.phase(f"loading model {settings.model}"):
        NOTHING.load_model(settings)
    found.problems += [problem for problem in apart.problems if problem.reason not in known]


def _describe(
    settings: Settings, workload: Workload, shards: Sequence[Shard[Any]]
) -> dict[str, Any]:
    """Columns, counts, and how long the texts are; no text itself."""
    facts: dict[str, Any] = {"source": workload.source}
    if isinstance(workload, Words):
        facts |= _columns(settings, workload.task)
    fewest = min(shard.examples for shard in shards)
    facts |= {
        "clients": len(shards),
        "examples for training": sum(shard.examples for shard in shards),
        "fewest at a client": fewest,
        "examples in a batch": min(settings.batch_size, fewest),
        "examples kept apart, dev and test": len(workload.dev) + len(workload.test),
    }
    encoded = [example for shard in shards for example in shard.encoded]
    counts = Counter(example.label for example in encoded)
    names = [str(number) for number in range(workload.labels)]
    if isinstance(workload, Words):
        names = list(workload.task.classes) or [word.strip() for word in workload.task.labels]
    facts |= {f"label {name}": counts[number] for number, name in enumerate(names)}
    if isinstance(workload, Words):
        lengths = [len(example.ids) for example in encoded]
        facts |= {
            "tokens of a text, median": int(statistics.median(lengths)),
            "tokens of a text, most": max(lengths),
            "texts of max_length or longer": sum(n >= settings.max_length for n in lengths),
        }
    return facts


def _columns(settings: Settings, task: Task) -> dict[str, str]:
    """The columns of a file of data, if it is one; and those that the task reads."""
    path, found = Path(settings.data or "").expanduser(), dict[str, str]()
    if settings.data and path.exists():
        file = find_files(path)[0] if path.is_dir() else path
        found["columns found"] = ", ".join(
            dict.fromkeys(c for _, row in read_rows(file) for c in row)
        )
    right = [task.label_column] if task.labels else list(task.answers)
    return found | {"columns read": ", ".join([*task.columns, *right])}


def _measure(
    settings: Settings,
    workload: Workload,
    shards: Sequence[Shard[Any]],
    probe: Probing,
    site: SiteSettings,
) -> dict[str, Any]:
    """One local step of the first client at the base model, and what a round would take and send
    if all of these clients were asked.
    """
    shard = shards[0]
    client = shard.client
    replica = make_replica(deployed(workload.identity), workload, settings.memory, Silent())
    objective = workload.objective(replica.rows, joint=False)
    backward = probe == "backward" or client < settings.backward_clients
    measured = Client(
        client,
        shard,
        replica,
        objective,
        backward=objective.loss if backward else None,
        at_points=objective.at_points if settings.joint_directions else None,
        adjust=adjustments(settings, workload).get(client),
    )
    replica.write()
    objective([shard.batch(0, 0)])  # what is compiled at first is not timed
    plan = replace(_plan(settings, workload, client), chain=replica.chain)
    one = replace(plan, run=replica.identity.run, steps=1)
    began = time.perf_counter()
    begun = measured.begin(one)
    ready = time.perf_counter()
    measured.measure(begun, {})
    seconds = (ready - began) + len(shards) * plan.steps * (time.perf_counter() - ready)
    reply = _whole(site.show(measured.finish()), plan.steps)
    replies = join([reply_to_bytes(reply)] * len(shards))
    cuda = torch.cuda.is_available() and settings.device != "cpu"
    return {
        "trainable weights": sum(
            weight.numel() for weight in workload.module.parameters() if weight.requires_grad
        ),
        "seconds, without messages": seconds,
        "peak memory, bytes": peak_memory(),
        **({"peak memory of the GPU, bytes": torch.cuda.max_memory_allocated()} if cuda else {}),
        "scalars sent": len(shards) * reply.count,
        "bytes of these": SCALAR_BYTES * len(shards) * reply.count,
        "bytes of the whole message": len(Envelope("replies", {}, replies).to_bytes()),
        "loss sent": site.report_loss,
        "number of examples sent": reply.examples,
    }


def _plan(settings: Settings, workload: Workload, client: int) -> Plan:
    """The first plan that a server with these settings would send."""
    rounds = settings.make_rounds(workload.identity.method)
    common = rounds.plan(deployed(workload.identity).run, 0, bytes(32))
    return replace(common, client=client, stream=client + 1 if rounds.per_client else 0)


def _whole(reply: Reply, steps: int) -> Reply:
    """The reply with as many steps as a round has."""
    kappa = reply.curvature
    return replace(
        reply,
        scalars=np.repeat(reply.scalars, steps, 0),
        curvature=None if kappa is None else np.repeat(kappa, steps, 0),
    )


def _compare(
    settings: Settings,
    workload: Workload,
    shards: Sequence[Shard[Any]],
    folder: Path,
    site: SiteSettings,
) -> None:
    """Checks that the site would answer such a plan for the client with the fewest examples.

    Raises:
        SettingsError: It would not; the message says why.
        ProtocolError: The file of answers is damaged.
    """
    shard = min(shards, key=lambda shard: shard.examples)
    plan, batch = _plan(settings, workload, shard.client), min(shard.batch_size, shard.examples)
    sent = read_sent(folder / ANSWERS)
    method = workload.identity.method
    if problems := list(site.problems(plan, method, batch, sent=sent, reached=0)):
        raise SettingsError(
            f"{folder / SITE} refuses what these settings ask for: {'; '.join(problems)}. Change "
            "it, or ask for other settings of the run"
        )


def _ask(access: Access) -> dict[str, Any]:
    """Whether the SuperLink can be reached, and knows the key.

    Raises:
        SettingsError: Key or certificate cannot be read.
        ProtocolError: The SuperLink does not know the key.
        Away: The SuperLink cannot be reached, or refuses the request.
    """
    with TemporaryDirectory() as nowhere:
        fleet = Fleet(access, Path(nowhere))
        try:
            known = fleet.knows_key()
        finally:
            fleet.leave()
    if access.key is not None and not known:
        raise ProtocolError(
            f"the SuperLink at {access.address} does not know the key {access.key}: give "
            f"{access.key}.pub to its operator"
        )
    return {"address": access.address, "reached": True, "knows the key": known or None}
