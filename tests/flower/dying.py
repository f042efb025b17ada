"""A worker that dies while it uploads an answer, after the SuperLink has heard of it.

python -m tests.flower.dying SUPERLINK SETTINGS FOLDER: client 0.
"""

from __future__ import annotations

import os
import sys
from itertools import count
from pathlib import Path

from hiso.flower.access import Access
from hiso.flower.daemon import LOG, Resident
from hiso.flower.fleet import Fleet
from hiso.flower.logs import log_to
from hiso.run.settings import parse_settings, read_toml


def main(superlink: str, settings: Path, folder: Path) -> None:
    call, uploads = Fleet._call, count()

    def die(self, name, *arguments):
        if name == "PushObject" and next(uploads) == 8:
            os._exit(0)
        return call(self, name, *arguments)

    Fleet._call = die
    log_to(folder / LOG)
    access = Access(superlink, None, None)
    Resident(folder, [0], 600).run(parse_settings(read_toml(settings)), access, share=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
