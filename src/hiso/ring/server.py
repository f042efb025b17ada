"""The server's side of a round: sample, validate, agree, aggregate, commit. No I/O but the ledger.

The whole state of a server is in the ledger, except the replies of the open round. So a server can
be killed at any time: a new server on the same ledger produces the same log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from hiso.core.plain import plain
from hiso.core.record import MAX_ROUND, Record
from hiso.errors import Diverged, ProtocolError, SettingsError
from hiso.ring.accept.cuts import CLIP_ROUNDS, Clip, Cut, example_cuts, sizes
from hiso.ring.accept.divergence import (
    GUARD_ROUNDS,
    SIZE_FACTOR,
    STUCK_ROUNDS,
    excess,
    last_good,
    median_loss,
    stuck,
)
from hiso.ring.accept.quarantine import Kind, Pause, Quarantine, sample_clients
from hiso.ring.accept.quorum import Agreement, agree
from hiso.ring.accept.replies import is_whole, reply_problems
from hiso.ring.aggregate import aggregate, client_weights
from hiso.ring.ledger.ledger import Ledger
from hiso.ring.mean_diagonal import MeanDiagonal
from hiso.ring.messages import SCALAR_BYTES, Plan, Reply
from hiso.ring.round_settings import RoundSettings


@dataclass(frozen=True)
class Verdict:
    """Whether a reply was accepted, and if not, all its problems."""

    accepted: bool
    reason: str = ""


@dataclass(frozen=True)
class Closed:
    """A round that was committed.

    Attributes:
        record: Its record.
        clients: Clients whose replies were used, ascending.
        loss: The mean loss of these clients before the round's step, weighted like the scalars;
            None if no client reports it.
        digest: The quorum's digest of the replica before the record.
        set_aside: For each client whose replica differs, since which round and what to do.
        bytes_up: 4 bytes for each scalar (g, κ) of the valid replies.
        bytes_down: 4 bytes for each scalar (coefficients, κ, changes) of the sent plans.
        cuts: What in the replies was reduced.
        paused: Clients whose quarantine begins now, and until when.
    """

    record: Record
    clients: list[int]
    loss: float | None
    digest: int
    set_aside: dict[int, str]
    bytes_up: int
    bytes_down: int
    cuts: list[Cut]
    paused: dict[int, Pause]

    @property
    def number(self) -> int:
        """The round's number, from 0."""
        return self.record.round


@dataclass(frozen=True)
class Aborted:
    """An aborted attempt at a round; the next `ask` tries again with a new sample.

    Attributes:
        round: The round, which stays the next one.
        attempt: The number of the attempt, from 0.
        reason: Why the attempt was aborted, and what to do.
        bytes_up: As in `Closed`.
        bytes_down: As in `Closed`.
        paused: As in `Closed`.
    """

    round: int
    attempt: int
    reason: str
    bytes_up: int
    bytes_down: int
    paused: dict[int, Pause]


class Server:
    """Runs the rounds of one ledger: `ask` opens a round, `tell` takes replies, `close` ends it.

    Example:
        >>> settings = RoundSettings(clients=6, sample=2, steps=1, directions=5, mu=1e-3)
        >>> server = Server(ledger, settings)
        >>> for plan in server.ask():
        ...     server.tell(answer(plan))
        >>> result = server.close()

    Attributes:
        ledger: The ledger. Make a new server after a rollback.
        settings: Settings from the next `ask` on; assign new ones between rounds for a schedule.
    """

    def __init__(self, ledger: Ledger, settings: RoundSettings) -> None:
        """A server that continues at the end of the ledger.

        Raises:
            ProtocolError: This version of hiso cannot run the ledger's identity.
            SettingsError: `normalise` is set for a method that has a diagonal or solves for its
                step.
        """
        self.ledger, self.settings = ledger, settings
        self._method = ledger.identity.method
        hyper = ledger.hyper_at()
        self._hyper = {name: float(np.float32(value)) for name, value in hyper.items()}
        if settings.normalise and self._method.needs == "scores":
            raise SettingsError(
                f"normalise is not possible: {self._method.name} already divides by curvature"
            )
        self._mean = MeanDiagonal(settings.normalise) if settings.normalise else None
        self._mean_now = 1.0
        if self._mean is not None:
            self._mean_now = ledger.derived_at(self._mean, self._mean.start)
        self._derived = self._method.derived
        if self._derived:
            self._derived = ledger.derived_at(self._method, self._derived)
        self._clips: Clip | None = None
        self._quarantine: Quarantine | None = None  # from the faults of all rounds but the next
        self._paused: dict[int, Pause] = {}
        self._plans: dict[int, Plan] = {}  # of the open round; empty if no round is open
        self._opened = settings
        self._attempt = 0
        self._replies: dict[int, Reply] = {}
        self._invalid = set[int]()
        self._scalars_down, self._reached = 0, set[int]()

    @property
    def hyper(self) -> dict[str, float]:
        """Hyper-parameters at the end of the log, rounded to float32."""
        return dict(self._hyper)

    def ask(self, stands: Callable[[int], int] | None = None) -> list[Plan]:
        """Opens the next round, or the next attempt at it; a second call returns the same plans.

        Args:
            stands: The position of a client's replica; the client's plan holds the records from
                there on. By default that of its last reply: after a reply in round q, a client is
                at position q, before record q.

        Raises:
            SettingsError: The settings name a hyper-parameter that the method does not have.
            Diverged: In the last rounds no direction changed the loss, although the loss is high.
        """
        if not self._plans:
            s, round = self.settings, self.ledger.position
            self._check_that_it_moves()
            attempt, changes = self.ledger.attempt(round), self._changes()
            self._paused = self._past_faults(round).after(self.ledger.faults(round)).pauses
            seed = self.ledger.identity.seed
            sampled = sample_clients(seed, round, attempt, s, self._paused)
            stands = stands or self.ledger.client_position
            standing = {client: stands(client) for client in sampled}
            records = self.ledger.records(min(standing.values()))
            common = self._plan()
            self._plans = {
                client: replace(
                    common,
                    client=client,
                    records=tuple(records[len(records) - (round - standing[client]) :]),
                    stream=client + 1 if s.per_client else 0,
                    changes=changes,
                )
                for client in sampled
            }
            self._opened, self._attempt = s, attempt
            self._replies, self._invalid = {}, set()
            self._scalars_down, self._reached = 0, set()
        return list(self._plans.values())

    def rejoin(self, client: int, position: int) -> Plan:
        """The open round's plan again, for a client whose replica is at another position.

        A position of 0 is the base model.

        Raises:
            ProtocolError: The client was not sampled, or the log has no such position.
        """
        plan = self._plans.get(client)
        if plan is None or not 0 <= position <= plan.round:
            raise ProtocolError(
                f"client {client} cannot rejoin at position {position}: clients "
                f"{sorted(self._plans)} are asked, for round {self.ledger.position}"
            )
        plan = replace(plan, records=tuple(self.ledger.records(position)))
        self._plans[client] = plan
        return plan

    def sent(self, *clients: int) -> None:
        """Counts that the first client's current plan was sent, once for all of these clients.

        `bytes_down` includes every sending. A loop that loses no messages need not call this: a
        plan that was answered counts once.
        """
        self._scalars_down += self._plans[clients[0]].scalars
        self._reached.update(clients)

    def drop(self) -> None:
        """Forgets the open round, if any; the next `ask` opens it again with its current
        settings.
        """
        self._plans = {}

    def rest(self, client: int, position: int) -> Plan:
        """A plan that brings a replica from `position` to the end of the log; no round is opened.

        Raises:
            ProtocolError: The log is not that long.
        """
        self.ledger.chain_at(position)
        records = tuple(self.ledger.records(position))
        return replace(self._plan(), client=client, records=records)

    def _plan(self) -> Plan:
        """The common part of all plans for the end of the log."""
        s, end = self.settings, self.ledger.position
        plan = s.plan(self.ledger.run, end, self.ledger.chain_at(end))
        if self._mean is None:
            return plan
        return replace(plan, mu=self._mean.mu(self._mean_now, s.mu))

    def tell(self, reply: object) -> Verdict:
        """Accepts a reply if it is valid; otherwise only logs the reasons."""
        if self._plans:
            problems = list(reply_problems(reply, self._plans, self._replies, self._method))
        else:
            problems = ["no round is open: the reply came too late, or was not asked for"]
        if not problems and isinstance(reply, Reply):
            kappa = None if reply.curvature is None else reply.curvature.copy()
            facts = dict(reply.facts)
            reply = replace(reply, scalars=reply.scalars.copy(), curvature=kappa, facts=facts)
            self._replies[reply.client] = reply
            return Verdict(True)
        reason = plain("; ".join(problems))
        named = (reply.client, reply.round) if isinstance(reply, Reply) else (None, None)
        client, round = (x if is_whole(x, 0, MAX_ROUND) else None for x in named)
        self.refuse(client, round, reason)
        return Verdict(False, reason)

    def refuse(self, client: int | None, round: int | None, reason: str) -> None:
        """Notes a reply that was refused; client and round as it claimed, where it made sense.

        If the client was asked and sends no better one before `close`, it is at fault.
        """
        if client is not None:
            self._invalid.add(client)
        self.ledger.refuse(client, round, reason)

    def close(self, seconds: Mapping[str, float] | None = None) -> Closed | Aborted:
        """Ends the round: commits its record, or aborts this attempt.

        Replies with the digest of more than half of the valid replies are used; the others are set
        aside. Valid replies hold finite float32 numbers, and so do their means.

        Args:
            seconds: Wall time by name, for display.

        Returns:
            The committed round; or `Aborted` if no digest has a majority, or fewer than
            `min_replies` replies remain.

        Raises:
            Diverged: The clients' median loss is far too high, or the size of their scalars if
                most do not report losses. Nothing was recorded, and the round is closed.
            RuntimeError: No round is open.
        """
        if not self._plans:
            raise RuntimeError("no round is open: call ask() first")
        plans, self._plans = self._plans, {}
        first = next(iter(plans.values()))
        replies = [self._replies[client] for client in sorted(self._replies)]
        up = SCALAR_BYTES * sum(reply.count for reply in replies)
        unsent = self._replies.keys() - self._reached
        down = SCALAR_BYTES * (self._scalars_down + sum(plans[c].scalars for c in unsent))
        agreed = agree(replies, plans, self._opened.min_replies, self.ledger.last_agreed)
        good = agreed.good
        if agreed.shortage is not None:
            clients = [reply.client for reply in replies]
            self.ledger.abort(
                first.round,
                self._attempt,
                agreed.shortage,
                clients,
                up=up,
                down=down,
                faults=self._faults(plans, agreed),
                disputed={} if good else {reply.client: reply.digest for reply in replies},
            )
            paused = self._newly_paused(first.round)
            return Aborted(first.round, self._attempt, agreed.shortage, up, down, paused)
        weights = client_weights(good, self._opened.weighting)
        cuts = example_cuts(good) if self._opened.weighting == "examples" else []
        counted = good
        if self._opened.clip:
            counted, clipped = self._clip().apply(good, self._opened.clip)
            cuts += clipped
        loss = _mean_loss(good, weights)
        self._guard(first.round, good)
        record = aggregate(
            first.round,
            counted,
            weighting=self._opened.weighting,
            per_client=self._opened.per_client,
            changes=first.changes,
            method=self._method,
        )
        derived = self._method.remember(self._derived, record)
        record = replace(record, changes={**first.changes, **self._learned(derived)})
        self.ledger.commit(
            record,
            replies,
            digest=agreed.digest,
            set_aside=agreed.set_aside,
            loss=loss,
            bytes_up=up,
            bytes_down=down,
            seconds=seconds or {},
            cuts=cuts,
            faults=self._faults(plans, agreed),
        )
        self._hyper |= record.changes
        self._derived = derived
        if self._clips is not None:
            self._clips.remember(good)
        if self._mean is not None:
            self._mean_now = self._mean.remember(self._mean_now, record)
        clients = [reply.client for reply in good]
        paused = self._newly_paused(first.round)
        aside = agreed.set_aside
        return Closed(record, clients, loss, agreed.digest, aside, up, down, cuts, paused)

    def _faults(self, asked: Mapping[int, Plan], agreed: Agreement) -> dict[int, Kind]:
        """Who of those asked was at fault, and how.

        Where nobody replied, silence may be the fault of whatever lies in between. Where as many
        have replied as are sampled, the others were not waited for.
        """
        faults: dict[int, Kind] = {}
        awaited = 0 < len(self._replies) < self._opened.sample
        for client in asked:
            if client not in self._replies and client in self._invalid:
                faults[client] = "invalid"
            elif client not in self._replies and awaited:
                faults[client] = "silent"
            elif client in agreed.set_aside and agreed.good:
                faults[client] = "digest"
        return faults

    def _past_faults(self, round: int) -> Quarantine:
        """The pauses from the faults of all rounds before `round`, read from the ledger once."""
        if self._quarantine is None:
            past = [fault for fault in self.ledger.faults() if fault.round < round]
            self._quarantine = Quarantine(past)
        return self._quarantine

    def _newly_paused(self, round: int) -> dict[int, Pause]:
        """Whose pause began with the end of this attempt at `round`."""
        now = self._past_faults(round).after(self.ledger.faults(round))
        if self.ledger.position > round:  # committed: its faults are final
            self._quarantine = now
        return {c: pause for c, pause in now.pauses.items() if pause != self._paused.get(c)}

    def _changes(self) -> dict[str, float]:
        hyper = {**self.settings.hyper, **self._follow(self.settings, self._derived)}
        if self._mean is not None:
            hyper = self._mean.hyper(self._mean_now, hyper)
        wanted = {name: float(np.float32(value)) for name, value in hyper.items()}
        unknown = sorted(wanted.keys() - self._hyper.keys())
        if unknown:
            raise SettingsError(
                f"the method of this run has no hyper-parameter {', '.join(unknown)}: "
                f"it has {', '.join(sorted(self._hyper))}"
            )
        return {name: value for name, value in wanted.items() if value != self._hyper[name]}

    def _learned(self, derived: Mapping[str, float]) -> dict[str, float]:
        """Hyper-parameters that can be computed after this round, but not from the log before
        it.
        """
        before = self._follow(self._opened, self._derived)
        after = self._follow(self._opened, derived)
        return {name: value for name, value in after.items() if name not in before}

    def _follow(self, s: RoundSettings, derived: Mapping[str, float]) -> dict[str, float]:
        """Hyper-parameters computed from the log, for a round with these settings."""
        batch = self.ledger.identity.batch_size
        given = {**self._method.hyper, **s.hyper}
        examples = None if batch is None else s.sample * batch
        return self._method.follow(given, derived, s.directions, examples)

    def _clip(self) -> Clip:
        """What limits the sizes of replies, read from the ledger once."""
        if self._clips is None:
            rows = self.ledger.replies(self.ledger.position - CLIP_ROUNDS + 1)
            self._clips = Clip((row.round, row) for row in rows if row.set_aside is None)
        return self._clips

    def _guard(self, round: int, good: Sequence[Reply]) -> None:
        factor, start = self._opened.divergence_factor, round - GUARD_ROUNDS + 1
        loss = median_loss([reply.loss for reply in good])
        if loss is not None:
            first = self._median_losses(stop=GUARD_ROUNDS)
            problem = excess(first, [*self._median_losses(start), loss], factor)
        else:
            first = self.ledger.median_sizes(stop=GUARD_ROUNDS)
            now = median(sizes(reply)["scalars"] for reply in good)
            last = [*self.ledger.median_sizes(start), now]
            factor = factor and SIZE_FACTOR * factor
            problem = excess(first, last, factor, "size of the scalars")
        if problem:
            text = f"round {round}: {problem}. Nothing of the round was recorded."
            raise self.diverged(Diverged(text, round=round))

    def _check_that_it_moves(self) -> None:
        end = self.ledger.position
        first, last = self._median_losses(stop=GUARD_ROUNDS), self.ledger.median_losses(end - 1)
        records = self.ledger.records(end - STUCK_ROUNDS)
        if last and (problem := stuck(first, records, last[0])):
            raise self.diverged(Diverged(f"{problem}."))

    def _median_losses(self, start: int = 0, stop: int | None = None) -> list[float]:
        known = self.ledger.median_losses(start, stop)
        return [loss for loss in known if loss is not None]

    def diverged(self, error: Diverged) -> Diverged:
        """The same error with the last good position, and half of the current lr.

        With `normalise`, this is half of the lr before the division by h̄.
        """
        records, losses = self.ledger.records(), self.ledger.median_losses()
        if not any(record.coefficient.any() for record in records):
            advice = "No weight has moved yet: start another run with another mu, or in float32."
            return type(error)(f"{error} {advice}", round=error.round, client=error.client)
        lr = (self.settings.hyper.get("lr") or self._hyper["lr"]) / 2
        return type(error)(
            str(error),
            position=last_good(records, losses),
            lr=lr,
            round=error.round,
            client=error.client,
        )


def _mean_loss(replies: Sequence[Reply], weights: NDArray[np.float64]) -> float | None:
    """The weighted mean of the losses that are reported; None if none is."""
    told = [
        (r.loss, w) for r, w in zip(replies, weights.tolist(), strict=True) if r.loss is not None
    ]
    if not told:
        return None
    losses, counted = zip(*told, strict=True)
    return float(np.average(losses, weights=counted))
