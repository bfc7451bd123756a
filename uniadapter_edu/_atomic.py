"""Writes several files that belong together, all of them or none."""

import os
import shutil
import tempfile
from pathlib import Path


def write_together(folder: str | Path, files: dict[str, bytes]) -> None:
    """Writes ``files`` (name -> content) into ``folder``, which is made if need be; other files there are left alone.

    Everything is first written beside the old files and flushed to the disk, which is where a full disk shows. Only
    then are the names swapped, and swapped back if that fails. Raises OSError, with the old files in place. (A power
    cut between two renames can still mix old and new: let one file hold the other's checksum to notice it.)
    """
    folder = Path(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        staging = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
        try:
            for name, content in files.items():
                _write(staging / name, content)
            _swap(staging, folder, list(files))
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except BaseException:
        if is_new:
            folder.rmdir()
        raise


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _swap(staging: Path, folder: Path, names: list[str]) -> None:
    """Moves each new file in and each old one aside; after an error, everything is where it was."""
    aside = staging / "old"
    aside.mkdir()
    undo = []  # (from, to), to be done backwards
    try:
        for name in names:
            if (folder / name).exists():
                os.replace(folder / name, aside / name)
                undo.append((aside / name, folder / name))
            os.replace(staging / name, folder / name)
            undo.append((folder / name, staging / name))
    except BaseException:
        for source, target in reversed(undo):
            os.replace(source, target)
        raise
