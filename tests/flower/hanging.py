"""A worker whose forward passes never end once there is a file `hang` in its folder.

python -m tests.flower.hanging SETTINGS FOLDER SECONDS: client 0, with that watchdog.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from torch.nn.modules.module import register_module_forward_pre_hook

from hiso.flower.daemon import LOG, Resident
from hiso.flower.logs import log_to
from hiso.run.settings import parse_settings, read_toml


def main(settings: Path, folder: Path, watchdog: float) -> None:
    def stand_still(module, inputs):
        if (folder / "hang").exists():
            threading.Event().wait()

    register_module_forward_pre_hook(stand_still)
    log_to(folder / LOG)
    Resident(folder, 0, watchdog).run(parse_settings(read_toml(settings)), share=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
