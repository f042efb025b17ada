"""Folders that are written whole or not at all."""

from __future__ import annotations

import pytest

from hiso.errors import RunConflict, StorageError
from hiso.export.folders import check_free, whole


@pytest.mark.parametrize("existing", [False, True])
def test_a_folder_is_there_as_a_whole(tmp_path, existing):
    out = tmp_path / "new" / "out"
    if existing:
        out.mkdir(parents=True)
    with whole(out) as folder:
        (folder / "one").write_text("1")
        assert not (out / "one").exists()
    assert [path.name for path in out.parent.iterdir()] == ["out"]
    assert (out / "one").read_text() == "1"
    assert out.stat().st_mode == tmp_path.joinpath("new").stat().st_mode


@pytest.mark.parametrize(
    ("error", "told"),
    [(OSError(28, "No space left"), StorageError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_after_an_error_nothing_is_there(tmp_path, error, told):
    def write():
        with whole(tmp_path / "out") as folder:
            (folder / "one").write_text("1")
            raise error

    with pytest.raises(told):
        write()
    assert not list(tmp_path.iterdir())


def test_what_came_meanwhile_is_kept(tmp_path):
    out = tmp_path / "out"

    def write():
        with whole(out) as folder:
            (folder / "one").write_text("1")
            out.mkdir()
            (out / "mine").write_text("mine")

    with pytest.raises(StorageError):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_link_to_an_empty_folder_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    link = tmp_path / "out"
    link.symlink_to(tmp_path / "disk")
    with whole(link) as folder:
        (folder / "one").write_text("1")
    assert link.is_symlink()
    assert (tmp_path / "disk" / "one").read_text() == "1"
    with pytest.raises(RunConflict):
        check_free(link)
