"""Writes files whole or not at all: whoever reads, and whenever this is killed, finds the old content or the new one.

A file is written beside its place under another name, flushed to the disk, and renamed, which operating systems do at
once. There is no moment without a file under its name. Of several files that belong together only one can be renamed at
a time; therefore one of them, written last, holds the SHA-256 of the other, and `companion` finds the one it means.
"""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FORGOTTEN = 3600  # seconds after which a draft that nobody writes to any more is what a killed process left


@contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a draft to write; when the block ends without an error, it becomes ``path``. Its folder is made if need be.

    Raises OSError if the disk refuses, with the old file in place and nothing left behind.
    """
    path = Path(path)
    with _folder(path.parent):
        clear_drafts(path.parent, FORGOTTEN, path.name)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.draft")
        try:
            yield draft
            with open(draft, "rb") as file:
                os.fsync(file.fileno())  # which is where a full disk shows, at the latest
            os.replace(draft, path)
        finally:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
    _flush_names(path.parent)


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Writes ``content`` to ``path``, as `whole` does."""
    with whole(path) as draft:
        draft.write_bytes(content)


def write_json(path: str | os.PathLike, content: dict | list) -> None:
    """Writes ``content`` as JSON to ``path``, as `whole` does."""
    write_whole(path, (json.dumps(content, indent=1) + "\n").encode("utf-8"))


def write_together(folder: str | os.PathLike, name: str, content: bytes, index: str, index_content: bytes) -> None:
    """Writes two files into ``folder``, of which the ``index`` holds the SHA-256 of the other's ``content``.

    The content waits beside the old one, under a name made of its SHA-256, until the index is renamed: in this moment
    the old pair becomes the new one, for readers who ask `companion`. One process at a time may write; any number may
    read meanwhile. Raises OSError with the old pair in place.
    """
    folder, digest = Path(folder), hashlib.sha256(content).hexdigest()
    waiting = _waiting(folder, name, digest)
    with _folder(folder):
        try:
            write_whole(waiting, content)
            write_whole(folder / index, index_content)
        except BaseException:
            with suppress(OSError):
                waiting.unlink(missing_ok=True)
            raise
    with suppress(OSError):  # the new pair is there, and is found without this
        settle(folder, name, digest)


def companion(folder: str | os.PathLike, name: str, digest: str) -> Path:
    """Where the content of this SHA-256 is: still waiting, or under its ``name`` (whose content is not checked here)."""
    waiting = _waiting(Path(folder), name, digest)
    return waiting if waiting.is_file() else Path(folder) / name


def settle(folder: str | os.PathLike, name: str, digest: str) -> None:
    """Gives the content of this SHA-256 its ``name``, if a killed writer left it waiting, and forgets what was before."""
    folder = Path(folder)
    if (waiting := companion(folder, name, digest)) != folder / name:
        os.replace(waiting, folder / name)
    for older in folder.glob(_waiting(folder, name, "?" * 16).name):
        older.unlink(missing_ok=True)


def _waiting(folder: Path, name: str, digest: str) -> Path:
    return folder / f".{name}.{digest[:16]}"


def clear_drafts(folder: Path, age: float = 0.0, name: str = "*") -> None:
    """Removes drafts of ``name`` that were left in ``folder`` by processes that were killed while they wrote."""
    now = time.time()
    for draft in folder.glob(f".{name}.*.draft"):
        with suppress(OSError):  # somebody else may be faster
            if now - draft.stat().st_mtime >= age:
                draft.unlink(missing_ok=True)


@contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """A folder that is made if need be, and is not left behind empty after an error."""
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise


def _flush_names(folder: Path) -> None:
    """What is renamed outlives a power cut once the folder is flushed, too; Windows does that by itself."""
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            with suppress(OSError):  # some network file systems flush no folders
                os.fsync(handle)
        finally:
            os.close(handle)
