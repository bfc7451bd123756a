"""Files are whole or not there: killed at any point, or read at any moment, the old content or the new one is found."""

import hashlib
import itertools
import json
import os
import signal
import stat

import pytest

from uniadapter_edu import _atomic
from uniadapter_edu._atomic import clear_drafts, companion, whole, write_json, write_together, write_whole

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fork and SIGKILL")

# Every call that changes the disk, in the order in which a pair is written.
PAIR_POINTS = [
    ("Path.write_bytes", 0),
    ("os.fsync", 0),
    ("os.replace", 0),
    ("os.fsync", 1),
]  # content, under its digest
PAIR_POINTS += [("Path.write_bytes", 1), ("os.fsync", 2), ("os.replace", 1), ("os.fsync", 3)]  # the index: committed
PAIR_POINTS += [("os.replace", 2)]  # the content gets its name


def at_call(function, n, action):
    """``function``, before whose n-th call something happens."""
    calls = itertools.count()

    def replacement(*args, **kwargs):
        if next(calls) == n:
            action()
        return function(*args, **kwargs)

    return replacement


def killed_at(point, n, work):
    """Do ``work`` in a process of its own that is killed before its n-th call of a function of `_atomic`."""
    name, _, function = point.partition(".")
    owner = getattr(_atomic, name)
    child = os.fork()
    if child == 0:
        setattr(owner, function, at_call(getattr(owner, function), n, lambda: os.kill(os.getpid(), signal.SIGKILL)))
        work()
        os._exit(0)
    return os.waitpid(child, 0)[1] == signal.SIGKILL


def write_pair(folder, content):
    about = json.dumps({"sha": hashlib.sha256(content).hexdigest()}).encode()
    write_together(folder, "weights", content, "about.json", about)


def read_pair(folder):
    """As a reader has it: the index, and the content that it means."""
    digest = json.loads((folder / "about.json").read_bytes())["sha"]
    content = companion(folder, "weights", digest).read_bytes()
    return content if hashlib.sha256(content).hexdigest() == digest else None


@pytest.mark.parametrize(("point", "n"), PAIR_POINTS)
def test_a_pair_that_a_killed_process_was_writing_is_the_old_or_the_new_one(tmp_path, monkeypatch, point, n):
    write_pair(tmp_path, b"old" * 1000)
    assert killed_at(point, n, lambda: write_pair(tmp_path, b"new" * 2000))
    committed = PAIR_POINTS.index((point, n)) > PAIR_POINTS.index(("os.replace", 1))
    assert read_pair(tmp_path) == (b"new" * 2000 if committed else b"old" * 1000)
    assert (tmp_path / "weights").read_bytes() in (b"old" * 1000, b"new" * 2000)  # never without its name, nor half
    monkeypatch.setattr(_atomic, "FORGOTTEN", 0)
    write_pair(tmp_path, b"newest")
    assert read_pair(tmp_path) == (tmp_path / "weights").read_bytes() == b"newest"
    assert {path.name for path in tmp_path.iterdir() if not path.name.endswith(".draft")} == {"weights", "about.json"}


@pytest.mark.parametrize(("point", "n"), [("Path.write_bytes", 0), ("os.fsync", 0), ("os.replace", 0)])
def test_a_single_file_keeps_its_name_and_its_old_content(tmp_path, point, n):
    write_whole(tmp_path / "file", b"old")
    assert killed_at(point, n, lambda: write_whole(tmp_path / "file", b"new"))
    assert (tmp_path / "file").read_bytes() == b"old"
    assert len(list(tmp_path.glob(".file.*.draft"))) == (point != "Path.write_bytes")
    clear_drafts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_reader_never_finds_a_file_missing_or_half_while_others_write(tmp_path):
    """The two contents are as long as several reads of the disk, so that a half-written one would show."""
    contents = [bytes([value]) * 300_000 for value in (1, 2)]
    write_whole(tmp_path / "file", contents[0])
    child = os.fork()
    if child == 0:
        for content in itertools.cycle(contents):
            write_whole(tmp_path / "file", content)
    found = set()
    try:
        for _ in range(200_000):
            found.add((tmp_path / "file").read_bytes())
            if len(found) == 2:
                break
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert found == set(contents)


def test_drafts_of_killed_processes_go_away_and_fresh_ones_stay(tmp_path):
    old, fresh, other = (tmp_path / f".{name}.draft" for name in ("file.1", "file.2", "other.3"))
    for draft in (old, fresh, other):
        draft.write_bytes(b"half")
    for draft in (old, other):
        os.utime(draft, (0, 0))
    write_whole(tmp_path / "file", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {"file", fresh.name, other.name}


def test_an_error_in_the_block_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "new" / "file") as draft:
        draft.write_bytes(b"half")
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_file_is_as_readable_as_any_other(tmp_path):
    """Not for its owner alone, as temporary files are."""
    (tmp_path / "plain").write_bytes(b"")
    write_json(tmp_path / "ours.json", [1])
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 1 and json.loads((tmp_path / "ours.json").read_text()) == [1]
