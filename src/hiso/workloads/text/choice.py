"""What of a model is trained: the setting `train`, as a value."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hiso.errors import SettingsError

WORDS = ("full", "lora", "ia3", "bias", "norm", "head")
_LAST = re.compile(r"last-([1-9]\d*)")
_REGEX = "regex:"
RANK, ALPHA = 8, 16


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is trained. The rest of the model is frozen.

    Attributes:
        kind: "full" for all; "lora" or "ia3" for adapters of PEFT; "bias", "norm" or "head" for the
            parameters that are called so; "last-N" for the last N blocks; "regex:PATTERN" for the
            parameters in whose name the pattern is found.
        rank: Of LoRA's A and B; None but for "lora".
        alpha: LoRA's alpha: B·A counts alpha / rank times; None but for "lora".
        targets: Names of the linear layers that get an adapter; None for those that PEFT has for
            the architecture, and but for adapters.

    Raises:
        SettingsError: There is no such kind, or the pattern is none.
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
        """Whether the model is trained as it is."""
        return self.kind == "full"

    @property
    def adapts(self) -> bool:
        """Whether adapters of PEFT are put into the model."""
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
        """What an identity says of it: nothing for "full"."""
        if self.full:
            return {}
        targets = None if self.targets is None else list(self.targets)
        values = {"kind": self.kind, "rank": self.rank, "alpha": self.alpha, "targets": targets}
        return {"train": {key: value for key, value in values.items() if value is not None}}

    @classmethod
    def of(cls, facts: Mapping[str, Any], model: Any) -> Choice:
        """The choice that an identity tells of.

        Args:
            facts: The identity's.
            model: What the identity says of the base model, the adapted layers among it.

        Raises:
            SettingsError: This version of hiso does not know it.
        """
        told = dict(facts.get("train", {}))
        targets = (model or {}).get("targets") if told else None
        try:
            return cls(**{**told, "targets": None if targets is None else tuple(targets)})
        except TypeError as error:
            raise SettingsError(f"what the run trained is not known here: {error}") from error


FULL = Choice()
