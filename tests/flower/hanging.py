"""A worker whose eighth forward pass never ends.

python -m tests.flower.hanging SUPERLINK SETTINGS FOLDER SECONDS: client 0, with that watchdog.
"""

from __future__ import annotations

import sys
import threading
from itertools import count
from pathlib import Path

from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PreTrainedModel

from hiso.flower.access import Access
from hiso.flower.daemon import LOG, Resident
from hiso.flower.logs import log_to
from hiso.run.settings import parse_settings, read_toml


def main(superlink: str, settings: Path, folder: Path, watchdog: float) -> None:
    passes = count()

    def stand_still(module, inputs):
        if isinstance(module, PreTrainedModel) and next(passes) == 7:
            threading.Event().wait()

    register_module_forward_pre_hook(stand_still)
    log_to(folder / LOG)
    access = Access(superlink, None, None)
    Resident(folder, [0], watchdog).run(parse_settings(read_toml(settings)), access, share=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4]))
