"""A worker that meets with an accident.

python -m tests.flower.unlucky HOW SUPERLINK SETTINGS FOLDER SECONDS: client 0, with that watchdog.
HOW is `hang`: the eighth forward pass never ends; or `die`: the process ends while it uploads an
answer, after the SuperLink has heard of it.
"""

from __future__ import annotations

import os
import sys
import threading
from itertools import count
from pathlib import Path

from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PreTrainedModel

from hiso.flower.access import Access
from hiso.flower.daemon import LOG, Resident
from hiso.flower.fleet import Fleet
from hiso.flower.logs import log_to
from hiso.run.settings import parse_settings, read_toml


def hang() -> None:
    passes = count()

    def stand_still(module, inputs):
        if isinstance(module, PreTrainedModel) and next(passes) == 7:
            threading.Event().wait()

    register_module_forward_pre_hook(stand_still)


def die() -> None:
    call, uploads = Fleet._call, count()

    def end(self, name, *arguments):
        if name == "PushObject" and next(uploads) == 8:
            os._exit(0)
        return call(self, name, *arguments)

    Fleet._call = end


def main(how: str, superlink: str, settings: Path, folder: Path, watchdog: float) -> None:
    {"hang": hang, "die": die}[how]()
    log_to(folder / LOG)
    access = Access(superlink, None, None)
    Resident(folder, [0], watchdog).run(parse_settings(read_toml(settings)), access, share=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), float(sys.argv[5]))
