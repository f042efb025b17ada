"""The choice of trained parameters: the setting `train`, as a value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hiso.errors import SettingsError

WORDS = ("full", "lora", "ia3", "bias", "norm", "head")
_LAST = re.compile(r"last-([1-9]\d*)")
_REGEX = "regex:"
RANK, ALPHA = 8, 64


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The trained parameters. All others are frozen.

    Attributes:
        kind: "full" for all; "lora" or "ia3" for PEFT adapters; "bias", "norm" or "head" for the
            parameters of this kind; "last-N" for the last N blocks; "regex:PATTERN" for the
            parameters whose name contains a match of the pattern.
        rank: Rank of LoRA's A and B; only for "lora", otherwise None.
        alpha: LoRA's alpha: B·A is multiplied by alpha / rank; only for "lora", otherwise None.
        targets: Names of the linear layers that get an adapter; None for PEFT's default layers for
            the architecture, and without adapters.

    Raises:
        SettingsError: There is no such kind, or the pattern is invalid.
    """

    kind: str = "full"
    rank: int | None = None
    alpha: int | None = None
    targets: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if problems := list(self._problems()):
            raise SettingsError("\n".join(problems))

    def _problems(self) -> Iterator[str]:
        pattern = self.pattern
        if pattern is not None:
            try:
                re.compile(pattern)
            except re.error as error:
                yield f"train = {self.kind!r}: {pattern!r} is no regular expression: {error}"
        elif self.kind not in WORDS and self.last is None:
            yield (
                f"train = {self.kind!r}: it is one of {', '.join(WORDS)}; last-N, as last-2, for "
                "the last N blocks; or regex:PATTERN for the parameters whose name has the pattern"
            )

    @property
    def full(self) -> bool:
        """Whether all parameters are trained, without adapters."""
        return self.kind == "full"

    @property
    def adapts(self) -> bool:
        """Whether PEFT adapters are added to the model."""
        return self.kind in ("lora", "ia3")

    @property
    def last(self) -> int | None:
        """N of "last-N"."""
        found = _LAST.fullmatch(self.kind)
        return None if found is None else int(found[1])

    @property
    def pattern(self) -> str | None:
        """The regular expression of "regex:PATTERN"."""
        return self.kind.removeprefix(_REGEX) if self.kind.startswith(_REGEX) else None

    @property
    def facts(self) -> dict[str, Any]:
        """The identity's entry for the choice; empty for "full"."""
        if self.full:
            return {}
        targets = None if self.targets is None else list(self.targets)
        values = {"kind": self.kind, "rank": self.rank, "alpha": self.alpha, "targets": targets}
        return {"train": {key: value for key, value in values.items() if value is not None}}

    @classmethod
    def of(cls, facts: Mapping[str, Any], model: Any) -> Choice:
        """The choice from an identity.

        Args:
            facts: The identity's entry for the choice.
            model: The identity's entry for the base model, which includes the adapted layers.

        Raises:
            SettingsError: This version of hiso does not know the choice.
        """
        told = dict(facts.get("train", {}))
        targets = (model or {}).get("targets") if told else None
        try:
            return cls(**{**told, "targets": None if targets is None else tuple(targets)})
        except TypeError as error:
            raise SettingsError(f"what the run trained is not known here: {error}") from error


FULL = Choice()
