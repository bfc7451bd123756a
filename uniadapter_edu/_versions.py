"""The range of transformers that this package is tested with, said once; `pyproject.toml` repeats it, a test compares.

5.4 is the first whose BLIP text layer returns a tensor and whose image processor works on PIL alone (5.3 returns a
tuple). The upper end is the newest release tested: insertion hooks into the insides of BLIP, and an untested release
may move them without a sound.
"""

from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

from uniadapter_edu.errors import UniAdapterError

TRANSFORMERS = ">=5.4.0,<5.24"


class UnsupportedVersion(UniAdapterError, ImportError):
    """A dependency is missing or outside the tested range. Also an ImportError: it is raised by the import."""


def check_versions() -> None:
    """Refuses a transformers outside the tested range. Reads metadata only, so it may run before the slow import."""
    cure = f'Install one that is tested: pip install "transformers{TRANSFORMERS}"'
    try:
        found = version("transformers")
    except PackageNotFoundError as error:
        raise UnsupportedVersion("uniadapter_edu needs transformers, and it is not installed.", cure) from error
    if not SpecifierSet(TRANSFORMERS).contains(found, prereleases=False):
        raise UnsupportedVersion(f"transformers {found} is installed, but tested are {TRANSFORMERS}.", cure)
