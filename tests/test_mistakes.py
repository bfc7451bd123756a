"""Would the suite notice? Each mistake of `mistakes.py` is made in a copy of the package, and its tests run against it.

The copy is imported in this process under the package's own name, and the tests are those of the other files, run by
a pytest inside this one: torch and transformers are there already, so that a mistake costs a fraction of a second.
`pytest tests/test_mistakes.py -s` prints what caught what.
"""

import contextlib
import io
import shutil
import sys
from pathlib import Path

import pytest
from mistakes import CATALOGUE, Mistake

import uniadapter_edu

PACKAGE, TESTS = Path(uniadapter_edu.__file__).parent, Path(__file__).parent
# What has to be imported anew to test a copy: the package and its tests, but for this file.
OTHER_TESTS = {path.stem for path in TESTS.glob("test_*.py")} - {Path(__file__).stem}
OURS = {PACKAGE.name, "conftest", "small_world"} | OTHER_TESTS

# The pytest inside has nothing of the one around it: neither its settings nor its plugins. What costs time and says
# nothing here is off: rewritten assertions, long tracebacks with all tensors in them, garbage collection at the end.
ALONE = ["--assert=plain", "--tb=native", "--capture=no", f"--rootdir={TESTS}"]
for plugin in ("cacheprovider", "unraisableexception", "threadexception", "warnings"):
    ALONE += ["-p", f"no:{plugin}"]


class Watcher:
    """What a pytest inside this one reports: how many tests passed, and the errors of those that did not."""

    def __init__(self):
        self.passed, self.failed = 0, {}

    def pytest_runtest_logreport(self, report):
        self.passed += report.when == "call" and report.passed

    def pytest_exception_interact(self, node, call):
        self.failed[node.nodeid] = call.excinfo


def is_ours(name: str) -> bool:
    """Whether a module in sys.modules belongs to the package or to its tests."""
    return name.split(".")[0] in OURS


@contextlib.contextmanager
def imported_from(folder: Path):
    """Inside, ``import uniadapter_edu`` finds the copy in ``folder``; afterwards everything is as it was."""

    def take_ours():
        return {name: sys.modules.pop(name) for name in list(sys.modules) if is_ours(name)}

    kept, path = take_ours(), list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        take_ours()
        sys.modules.update(kept)
        sys.path[:] = path


def copy_with(mistake: Mistake | None, folder: Path) -> Path:
    """A copy of the package in ``folder``, with the mistake if there is one."""
    copy = folder / PACKAGE.name
    # Not the data, which lies in here in an installed package: no test that runs against a copy needs it.
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("_data"))
    if mistake:
        source = (copy / mistake.file).read_text(encoding="utf-8")
        found = source.count(mistake.old)
        assert found == 1, (
            f"The snippet of the mistake {mistake.name!r} stands {found} times in {mistake.file}, expected once: the "
            f"source has changed, and tests/mistakes.py has to follow. The snippet:\n{mistake.old}"
        )
        (copy / mistake.file).write_text(source.replace(mistake.old, mistake.new), encoding="utf-8")
    return folder


def run_suite(folder: Path, tests: tuple[str, ...], monkeypatch, *options: str) -> Watcher:
    """Run these tests of the suite against the copy of the package in ``folder``."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (folder / "pytest.ini").write_text("[pytest]\n")
    arguments = [*ALONE, "-c", str(folder / "pytest.ini"), *options, *(str(TESTS / test) for test in tests)]
    watcher, printed = Watcher(), io.StringIO()
    with imported_from(folder), contextlib.redirect_stdout(printed):
        import uniadapter_edu as copy

        assert Path(copy.__file__).parent == folder / PACKAGE.name
        code = pytest.main(arguments, plugins=[watcher])
    ran = code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    assert ran and bool(watcher.failed) == bool(code), printed.getvalue()
    return watcher


@pytest.fixture(scope="module")
def table():
    """Pairs of a mistake and what caught it, printed at the end."""
    pairs = []
    yield pairs
    width = max((len(name) for name, _ in pairs), default=0)
    for name, test in [("mistake", "caught by"), ("-" * width, "-" * 9), *pairs] if pairs else []:
        print(f"\n{name:<{width}} | {test}", end="")
    print()


@pytest.mark.parametrize("mistake", CATALOGUE, ids=lambda mistake: mistake.name)
def test_it_is_caught(mistake, table, tmp_path, monkeypatch):
    watcher = run_suite(copy_with(mistake, tmp_path), mistake.caught_by, monkeypatch, "-x")
    assert watcher.failed, f"{mistake.name}: all {watcher.passed} tests of {', '.join(mistake.caught_by)} pass."
    ((test, error),) = watcher.failed.items()
    table.append((mistake.name, test.removeprefix("tests/")))
    # An assertion, and not some error on the way: a mistake that crashes needs no test.
    assert error.errisinstance((AssertionError, pytest.fail.Exception)), f"{test}: {error.exconly()}"


def test_a_copy_without_a_mistake_passes(tmp_path, monkeypatch):
    suite = tuple(sorted({test for mistake in CATALOGUE for test in mistake.caught_by}))
    watcher = run_suite(copy_with(None, tmp_path), suite, monkeypatch)
    assert not watcher.failed and watcher.passed > 50, watcher.failed


def test_the_package_is_itself_again(tmp_path, monkeypatch):
    before = {name: module for name, module in sys.modules.items() if is_ours(name)}
    run_suite(copy_with(CATALOGUE[0], tmp_path), ("test_golden.py",), monkeypatch, "-x")
    assert {name: module for name, module in sys.modules.items() if is_ours(name)} == before
    assert sys.modules["uniadapter_edu"] is uniadapter_edu
    assert str(tmp_path) not in sys.path


def test_the_catalogue_is_large_and_each_entry_different():
    assert len(CATALOGUE) >= 36
    assert len({mistake.name for mistake in CATALOGUE}) == len(CATALOGUE)
    assert len({(mistake.file, mistake.old, mistake.new) for mistake in CATALOGUE}) == len(CATALOGUE)
    assert all(mistake.old != mistake.new for mistake in CATALOGUE)


def test_a_snippet_that_is_gone_is_named(tmp_path):
    gone = Mistake("a mistake", "adapter.py", "no such line", "another")
    with pytest.raises(AssertionError, match="stands 0 times in adapter.py"):
        copy_with(gone, tmp_path)
