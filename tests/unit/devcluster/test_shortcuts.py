"""Short names for the folders that stand for /tmp: found again, and gone with their owner."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from spotinference import errors
from spotinference.devcluster import shortcuts


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pod's folder too deep for a socket; the temporary directory of the machine beside it."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    deep = tmp_path / "clusters" / ("a" * 40) / "pods" / ("b" * 36) / "volumes" / "tmp"
    deep.mkdir(parents=True)
    return deep


def test_the_link_is_short_and_the_same_every_time(folder: Path, tmp_path: Path) -> None:
    link = shortcuts.to(folder)
    assert link == shortcuts.to(folder)
    assert link.resolve() == folder
    assert len(os.fspath(link)) - len(os.fspath(tmp_path)) < 32


def test_a_name_that_another_took_is_not_trusted(folder: Path, tmp_path: Path) -> None:
    link = shortcuts.to(folder)
    link.unlink()
    link.symlink_to(tmp_path)
    with pytest.raises(errors.ConfigInvalid, match="remove it"):
        shortcuts.to(folder)


def test_only_the_links_below_a_folder_are_forgotten_even_if_it_is_gone(
    folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    kept, gone = shortcuts.to(other), shortcuts.to(folder)
    folder.rmdir()
    shortcuts.forget(tmp_path / "clusters")
    assert not gone.is_symlink()
    assert kept.is_symlink()
