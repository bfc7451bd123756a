"""Finds the files that ship with the package, and checks that they are the ones that were shipped.

A checkout keeps them in ``data/``, an installed wheel in ``uniadapter_edu/_data``; nobody else needs to know which.
``data/checksums.json`` maps each file's relative path to its SHA-256. A file is hashed when it is asked for, once a
process, so that importing the package costs nothing. After building data: ``python -m uniadapter_edu._files data``.
"""

import hashlib
import json
import sys
from pathlib import Path

from uniadapter_edu.errors import UniAdapterError

CHECKSUMS = "checksums.json"
NOT_DATA = {".py", ".md"}  # scripts and data cards change without the data changing
_PACKAGE = Path(__file__).resolve().parent
_verified: set[tuple[str, int, int]] = set()  # (path, size, mtime): what this process has hashed and found right


def data_path(*parts: str) -> Path:
    """The path of a file or folder that ships with the package, its checksums verified.

    ``data_path("backbone")`` is a folder, ``data_path("sprites", "twemoji.parquet")`` a file, ``data_path()`` the root.
    Raises `UniAdapterError` if it is missing or if its bytes are not those that were shipped.
    """
    root = _data_root()
    path = root.joinpath(*parts)
    if not path.exists():
        raise UniAdapterError(f"The data file {Path(*parts).as_posix()} is missing (looked in {root}).", _CURE)
    if parts:
        verify_checksums(root, *parts)
    return path


def verify_checksums(root: Path | None = None, *parts: str) -> None:
    """Checks every listed file under ``root/parts`` (all of them without arguments), and names all that are wrong."""
    root = _data_root() if root is None else Path(root)
    listed, below = _read_checksums(root), Path(*parts)
    wrong = []
    for name, digest in listed.items():
        if not Path(name).is_relative_to(below):
            continue
        if not (root / name).is_file():
            wrong.append(f"{name} is missing")
        elif not _is_intact(root / name, digest):
            wrong.append(f"{name} was altered")
    if wrong:
        raise UniAdapterError(f"Data files are not as they were shipped: {'; '.join(wrong)} (in {root}).", _CURE)


def write_checksums(folder: str | Path) -> Path:
    """Writes ``folder/checksums.json`` for every data file below it; called after data is built. Returns its path."""
    folder = Path(folder)
    digests = {path.relative_to(folder).as_posix(): sha256(path) for path in data_files(folder)}
    target = folder / CHECKSUMS
    target.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
    return target


def data_files(folder: str | Path) -> list[Path]:
    """The files below ``folder`` that ship as data: no scripts, no data cards, nothing hidden, no caches."""
    folder = Path(folder)
    return sorted(path for path in folder.rglob("*") if path.is_file() and _is_data(path.relative_to(folder)))


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_data(relative: Path) -> bool:
    hidden = any(part.startswith((".", "__")) or part == "cache" for part in relative.parts)
    return not hidden and relative.suffix not in NOT_DATA and relative.as_posix() != CHECKSUMS


def _is_intact(path: Path, digest: str) -> bool:
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _verified and sha256(path) == digest:
        _verified.add(key)
    return key in _verified


def _read_checksums(root: Path) -> dict[str, str]:
    try:
        return json.loads((root / CHECKSUMS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UniAdapterError(f"The list of data files, {root / CHECKSUMS}, cannot be read: {error}.", _CURE) from error


def _data_root() -> Path:
    places = [_PACKAGE / "_data", _PACKAGE.parent / "data"]  # an installed wheel, a checkout
    for place in places:
        if place.is_dir():
            return place
    raise UniAdapterError(f"The package's data folder is missing: neither {places[0]} nor {places[1]} exists.", _CURE)


_CURE = (
    "Restore it: reinstall the package, or in a checkout `git checkout -- data`. "
    "If you rebuilt the data on purpose, run `python -m uniadapter_edu._files data`."
)

if __name__ == "__main__":
    print(f"wrote {write_checksums(sys.argv[1] if len(sys.argv) > 1 else _data_root())}")
