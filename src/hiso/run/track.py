"""Experiment trackers through accelerate: TensorBoard, Weights & Biases, MLflow, Trackio."""

from __future__ import annotations

import importlib
import importlib.util
import io
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Self

from hiso.errors import LoadError, SettingsError
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.ledger.runfile import Evaluation
from hiso.run.folder import RunFolder, write_text
from hiso.run.observer import Silent
from hiso.run.results import Round, rounds_of
from hiso.run.settings import near

log = logging.getLogger(__name__)

PROJECT, STEP = "hiso", "position"
_Line = tuple[int, int, dict[str, float]]


class Tracker(Silent):
    """An observer that copies a run's ledger to a tracker.

    At step r, for round r: `round/loss`; `round/seconds` (wall time); `round/bytes_up` and
    `round/bytes_down` (bytes of the scalars of rounds 0 to r together). At step p, for an
    evaluation at position p of the log: `SPLIT/METRIC`, such as `dev/accuracy`. The settings at
    the start of tracking are stored as the run's configuration.

    Each round and each evaluation is sent once, also if a run is stopped and resumed:
    `track/NAME.json` in the run's folder notes what was sent. A run that was started without a
    tracker is sent from round 0 on. After a rollback to a position before the last one sent, the
    tracker gets a new run with the whole history, and the old one is left unchanged. A kill has
    two possible effects: if it happens between the tracker's write and the note in
    `track/NAME.json`, a step is sent again with the same values; and values in the queue of
    Trackio or Weights & Biases, which write asynchronously, are lost.

    TensorBoard, MLflow and Trackio store their files in `track/NAME/` of the run's folder, unless
    `MLFLOW_TRACKING_URI` or `TRACKIO_DIR` says otherwise; Trackio uses one place per process, that
    of the first run. Weights & Biases also stores its files there, and sends them according to
    `wandb login` and `WANDB_MODE`; its own step counts the calls, and its charts are drawn against
    the metric `position`, which is r or p. Output of the packages goes to the logger
    `hiso.run.track`.

    Example:
        >>> with Tracker("tensorboard", "runs/first") as tracker:
        ...     simulate(out="runs/first", observer=tracker, task="rotten_tomatoes", rounds=60)

    Raises:
        SettingsError: There is no such tracker.
        LoadError: A required package is not installed; or, during the run, the tracker cannot be
            started.
    """

    def __init__(self, name: str, folder: str | Path) -> None:
        """A tracker of the run in `folder`; writes nothing yet.

        Args:
            name: tensorboard, wandb, mlflow or trackio.
            folder: The run's folder, which need not exist yet.
        """
        if name not in TRACKERS:
            raise SettingsError(f"track: unknown tracker {name!r}" + near(name, TRACKERS))
        missing = [p for p in ("accelerate", name) if importlib.util.find_spec(p) is None]
        if missing:
            install = "'hiso[track]'" if name == "tensorboard" else f"'hiso[track]' {name}"
            raise LoadError(
                f"tracking with {name} needs {' and '.join(missing)}. Run: pip install {install}"
            )
        self.name, self._run = name, RunFolder(Path(folder))
        self._place = self._run.path / "track" / name
        self._notes = self._place.with_suffix(".json")
        self._ledger: Ledger | None = None
        self._tracker: Any = None
        self._told: dict[str, Any] = {}
        self._bytes = (0, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Finishes the tracker's run; the next process can continue it."""
        if self._ledger is not None:
            self._ledger.close()
        if self._tracker is not None:
            with _quiet():
                if self.name == "trackio":  # else it finishes again at exit
                    importlib.import_module("trackio").finish()
                else:
                    self._tracker.finish()
        self._ledger = self._tracker = None

    def started(self, position: int, rounds: int) -> None:  # noqa: ARG002
        """See `Observer.started`."""
        self._follow()

    def round(self, done: Round) -> None:  # noqa: ARG002
        """See `Observer.round`."""
        self._follow()

    def evaluated(self, evaluation: Evaluation) -> None:  # noqa: ARG002
        """See `Observer.evaluated`."""
        self._follow()

    def _follow(self) -> None:
        """Sends to the tracker, in the order of steps, everything new in the ledger."""
        ledger = self._ledger or self._begin()
        told = self._told
        rounds = rounds_of(ledger, told["rounds"])
        known = set(map(tuple, told["evaluations"]))
        news = [e for e in ledger.evaluations() if (e.position, e.split) not in known]
        if not rounds and not news:
            return
        lines: list[_Line] = []
        for e in news:
            figures = {f"{e.split}/{name}": value for name, value in sorted(e.metrics.items())}
            lines.append((e.position, 0, figures))
        lines += [(done.round, 1, self._figures(done)) for done in rounds]
        with _quiet():
            first = told["rounds"] + len(told["evaluations"])
            for count, (step, _, figures) in enumerate(sorted(lines, key=_order), first):
                if self.name == "wandb":  # a resumed run must use steps after its last one
                    self._tracker.log(figures | {STEP: step}, step=count)
                else:
                    self._tracker.log(figures, step=step)
        told["rounds"] += len(rounds)
        told["chain"] = ledger.chain_at(told["rounds"]).hex()
        told["evaluations"] += [(e.position, e.split) for e in news]
        write_text(self._notes, json.dumps(told) + "\n")

    def _figures(self, done: Round) -> dict[str, float]:
        up, down = self._bytes
        self._bytes = up + done.bytes_up, down + done.bytes_down
        values = {
            "loss": done.loss,
            "seconds": done.seconds,
            "bytes_up": self._bytes[0],
            "bytes_down": self._bytes[1],
        }
        return {f"round/{key}": value for key, value in values.items() if value is not None}

    def _begin(self) -> Ledger:
        """Opens the ledger, and the tracker's run for it, or a new one."""
        self._ledger = ledger = Ledger.open(self._run.ledger)
        notes = _read(self._notes)
        new = notes is None or not _agree(notes, ledger)
        if notes is None or new:
            name = f"{self._run.path.absolute().name}-{uuid.uuid4().hex[:8]}"
            notes = {"name": name, "id": None, "rounds": 0, "evaluations": []}
        self._told = told = notes
        before = [r for r in ledger.rounds() if r.round < told["rounds"]]
        self._bytes = sum(r.bytes_up for r in before), sum(r.bytes_down for r in before)
        self._place.mkdir(parents=True, exist_ok=True)
        try:
            with _quiet():
                self._tracker = self._start(ledger, new=new)
        except Exception as error:
            raise LoadError(f"{self.name} cannot be started: {error}") from error
        return ledger

    def _start(self, ledger: Ledger, *, new: bool) -> Any:
        from accelerate.state import PartialState

        PartialState()  # accelerate's trackers ask it which process they are in
        tracker = TRACKERS[self.name](self._place.absolute(), self._told)
        tracker.start()
        if self.name == "mlflow":
            self._told["id"] = tracker.tracker.info.run_id  # the others identify a run by its name
        if self.name == "wandb":
            tracker.tracker.define_metric("*", step_metric=STEP)
        if new:
            settings = ledger.settings | {"run": ledger.run}
            known = {
                key: json.dumps(value) if isinstance(value, dict) else value
                for key, value in settings.items()
                if value is not None
            }
            tracker.store_init_configuration(known)
        return tracker


def _order(line: _Line) -> tuple[int, int]:
    """The sort key: by step; an evaluation at position r comes before round r."""
    return line[:2]


def _read(notes: Path) -> dict[str, Any] | None:
    try:
        return json.loads(notes.read_text())
    except (OSError, ValueError):
        return None


def _agree(notes: Mapping[str, Any], ledger: Ledger) -> bool:
    """Whether the log still begins with everything that was sent."""
    rounds = notes["rounds"]
    return rounds <= ledger.position and ledger.chain_at(rounds).hex() == notes["chain"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Redirects printed output to the log."""
    text = io.StringIO()
    try:
        with redirect_stdout(text), redirect_stderr(text):
            yield
    finally:
        for line in text.getvalue().splitlines():
            log.info("%s", line)


def _tensorboard(place: Path, told: Mapping[str, Any]) -> Any:
    from accelerate.tracking import TensorBoardTracker

    return TensorBoardTracker(told["name"], place)


def _wandb(place: Path, told: Mapping[str, Any]) -> Any:
    from accelerate.tracking import WandBTracker

    return WandBTracker(
        os.environ.get("WANDB_PROJECT", PROJECT),
        id=told["name"],
        name=told["name"],
        resume="allow",
        dir=place,
        settings={"silent": True, "console": "off"},
    )


def _mlflow(place: Path, told: Mapping[str, Any]) -> Any:
    from accelerate.tracking import MLflowTracker

    local = "MLFLOW_TRACKING_URI" not in os.environ
    if local:
        mlflow = importlib.import_module("mlflow")
        mlflow.set_tracking_uri(f"sqlite:///{place}/mlflow.db")
    artifacts = (place / "artifacts").as_uri() if local else None
    return MLflowTracker(PROJECT, artifacts, run_id=told["id"], run_name=told["name"])


def _trackio(place: Path, told: Mapping[str, Any]) -> Any:
    os.environ.setdefault("TRACKIO_DIR", str(place))
    from accelerate.tracking import TrackioTracker

    return TrackioTracker(PROJECT, name=told["name"], resume="allow", embed=False)


TRACKERS: dict[str, Callable[[Path, Mapping[str, Any]], Any]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
"""Functions that create accelerate's tracker, not yet started, from its folder and the notes."""
