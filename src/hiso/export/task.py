"""Rebuilds the task of a run from its identity."""

from __future__ import annotations

from hiso.core.identity import Identity
from hiso.workloads.text.task import Chat, Task
from hiso.workloads.text.tasks import TASKS


def task_of(identity: Identity) -> Task:
    """The built-in task of this name, or otherwise a task made from the identity.

    For the user's own task, the identity has only template, label words and length of answers.
    """
    said = identity.task
    labels, answer_tokens = tuple(said["labels"]), said.get("answer_tokens", 0)
    chat = Chat(**said["chat"]) if "chat" in said else None
    known = TASKS.get(said["name"])
    if known is not None:
        known = known if chat is None else known.in_chat(chat)
        mine = known.template, known.labels, known.answer_tokens
        if mine == (said["template"], labels, answer_tokens):
            return known
    return Task(
        name=said["name"],
        template=said["template"],
        labels=labels,
        answers=("answer",) if answer_tokens else (),
        answer_tokens=answer_tokens,
        chat=chat,
    )
