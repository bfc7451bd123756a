"""What a fresh machine gets: pins within ranges, README's own commands, and a wheel that works elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from uniadapter_edu import _versions

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def run(*command, **options):
    """Runs a command and returns its result; its error output is the message if it fails."""
    result = subprocess.run([str(part) for part in command], check=False, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# ------------------------------------------------------------------------------------------------------------ versions


def ranges(*extras):
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}


def pins():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    return [line for line in lines if line]


def test_transformers_range_is_the_same_in_both_places():
    assert ranges()["transformers"] == SpecifierSet(_versions.TRANSFORMERS)


def test_requirements_are_exact_pins_and_the_package_itself():
    assert pins()[-1] == "-e ."
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins()[:-1])


def test_all_that_is_needed_is_pinned_within_its_range():
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in pins()[:-1])}
    wrong = [
        f"{n}{s}" for n, s in ranges("notebooks", "grading", "test").items() if n not in pinned or pinned[n] not in s
    ]
    assert not wrong


def test_versions_of_the_package_agree():
    import uniadapter_edu

    assert uniadapter_edu.__version__ == PROJECT["version"]
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()


def test_license_is_the_one_that_is_named():
    text = (ROOT / "LICENSE").read_text()
    assert PROJECT["license"] == "Apache-2.0" and "Version 2.0, January 2004" in text and len(text) > 11_000


# ------------------------------------------------------------------------------------------------------------ commands


def readme_command(name, readme=ROOT / "README.md"):
    return run("bash", ROOT / ".ci" / "readme-command", name, readme)


def test_commands_are_read_from_the_readme(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "# T\n```\nno\n```\n<!-- run -->\n```bash\none && \\\n  two\n```\n<!-- test -->\n\n```\nthree\n```\n"
    )
    assert readme_command("run", readme) == "one && \\\n  two\n"
    assert readme_command("test", readme) == "three\n"
    command = ["bash", ROOT / ".ci" / "readme-command", "walk", readme]
    missing = subprocess.run(command, check=False, capture_output=True, text=True)
    assert missing.returncode != 0 and "<!-- walk -->" in missing.stderr


def test_readme_shows_the_two_commands():
    for name, job in (("run", "python -m uniadapter_edu quickstart"), ("test", "python -m pytest -q")):
        lines = readme_command(name).splitlines()
        assert len(lines) == 1 and lines[0].endswith(job) and "pip install -r requirements.txt" in lines[0]


def test_ci_and_the_workflow_do_the_same():
    assert "bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    script = (ROOT / ".ci" / "run").read_text()
    assert ".ci/readme-command test" in script and "\n.ci/chromium\n" in script and "ruff check" in script
    run("bash", "-n", ROOT / ".ci" / "run")


def test_ci_goes_on_where_no_chromium_can_be_had_and_says_so(tmp_path):
    for tool in ("bash", "dirname", "grep", "id", "mktemp", "rm"):  # and neither apt-get nor python3
        (tmp_path / tool).symlink_to(shutil.which(tool))
    command = ["bash", ROOT / ".ci" / "chromium"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, env={"PATH": str(tmp_path)})
    assert result.returncode == 0 and "browser tests will be skipped" in result.stderr


# --------------------------------------------------------------------------------------------------------------- wheel


@pytest.fixture(scope="module")
def away(installed_wheel, tmp_path_factory):
    """``away(*arguments)`` runs Python in an empty folder, with the package as the wheel installs it."""
    place, folder = installed_wheel, tmp_path_factory.mktemp("elsewhere")
    env = os.environ | {"PYTHONPATH": str(place), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def away(*arguments):
        return run(sys.executable, *arguments, cwd=folder, env=env)

    away.place, away.folder = place, folder
    return away


def test_the_wheel_has_all_modules_and_all_data_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "uniadapter_edu").rglob("*.py")}
    files = [ROOT / "data" / name for name in json.loads((ROOT / "data" / "checksums.json").read_text())]
    files += [ROOT / "data" / "checksums.json", *(ROOT / "data").glob("*.py"), *(ROOT / "data").glob("[!.]*/*.md")]
    files += (ROOT / "data").glob("*.md")
    assert names == modules | {f"uniadapter_edu/_data/{file.relative_to(ROOT / 'data').as_posix()}" for file in files}


def test_the_installed_wheel_finds_its_own_data(away):
    code = "import uniadapter_edu as ua; ua.verify_checksums(); print(ua.__file__); print(ua.data_path('sprites'))"
    package, sprites = map(Path, away("-c", code).splitlines())
    assert package == away.place / "uniadapter_edu" / "__init__.py"
    assert sprites == away.place / "uniadapter_edu" / "_data" / "sprites"


def test_the_installed_wheel_runs_a_short_quickstart(away):
    tiny = "--methods uniadapter --steps 2 --scenes 16 --gallery 8 --batch-size 8 --top-k 4 --output out"
    out = away("-m", "uniadapter_edu", "quickstart", *tiny.split())
    assert "the same numbers" in out
    assert {"adapter_config.json", "adapter_model.safetensors"} == {
        p.name for p in (away.folder / "out/adapters").iterdir()
    }
