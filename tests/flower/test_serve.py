"""`hiso serve` refuses before it starts anything."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--mu", "auto"), "mu = auto measures on the model"),
        (("--clients", "3", "--start-with", "4"), "start_with = 4"),
        (("--rollback", "1"), "holds no run yet"),
        (("--directions", "50000", "--local-steps", "6"), "300000 numbers"),
    ],
)
def test_what_a_server_cannot_run_is_refused(hiso, tmp_path, asked, said):
    done = hiso("serve", "--out", tmp_path / "run", *asked)
    assert done.code in (2, 3)
    assert said in done.err
    assert not (tmp_path / "run").exists()
