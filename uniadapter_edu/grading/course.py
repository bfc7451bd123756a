"""The instructor's route, each step one command, thin over nbgrader: notebooks/assignments/README.md walks along it.

    python -m uniadapter_edu.grading generate COURSE           # sources -> the course's folder: with solutions, and without
    python -m uniadapter_edu.grading release COURSE FOLDER     # what students get, as a repository of its own
    python -m uniadapter_edu.grading collect COURSE a1 FOLDER  # STUDENT/a1.ipynb, STUDENT_a1.ipynb, or archives of them
    python -m uniadapter_edu.grading autograde COURSE a1       # each submission in a sandbox of its own
    python -m uniadapter_edu.grading feedback COURSE a1        # an HTML page for each student
    python -m uniadapter_edu.grading gradebook COURSE          # grades.csv, exercises.csv, grades.html
    python -m uniadapter_edu.grading students                  # renews the student versions beside the sources

COURSE is a folder in nbgrader's layout, with its gradebook.db; nbgrader's own tools work in it.
"""

import argparse
import csv
import hashlib
import html
import importlib.util
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import tomllib
import warnings
from pathlib import Path

import nbformat
from nbgrader.api import Gradebook
from nbgrader.apps.api import NbGraderAPI
from nbgrader.plugins.export import CsvExportPlugin
from traitlets.config import Config

from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.grading import sandbox
from uniadapter_edu.grading.source import read

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "notebooks" / "assignments" / "source"
LARGEST_SUBMISSION = 20e6  # bytes; pictures in it included
STUB = "return ...  # put your code in place of this line"
NO_ANSWER = "*Your answer, in place of this line.*"
UNREADABLE = "**What was handed in could not be read, and nothing could be graded.** {why} Below stands the assignment as it was given out."


class Course:
    """A course's folder. ``limits``: traits of `ExecuteApart`, such as ``cell_seconds``."""

    def __init__(self, folder: str | Path, sources: str | Path = SOURCES, **limits):
        self.folder, self.sources, self.limits = Path(folder).resolve(), Path(sources).resolve(), limits
        self.folder.mkdir(parents=True, exist_ok=True)
        # nbgrader calls alembic by its name, which is not found where the environment is used without being activated.
        tools = str(Path(sys.executable).parent)
        if tools not in os.environ["PATH"].split(os.pathsep):
            os.environ["PATH"] += os.pathsep + tools

    # ------------------------------------------------------------------------------------------------------ the route

    def generate(self, names: list[str] = ()) -> list[str]:
        """Notebooks with solutions in ``source/``, without in ``release/``; the gradebook learns of their cells."""
        made = list(names) or known(self.sources)
        for name in made:
            place = self.folder / "source" / name
            place.mkdir(parents=True, exist_ok=True)
            nbformat.write(source_notebook(name, self.sources), place / f"{name}.ipynb")
            _succeed(self._api(name).generate_assignment(name), f"{name} could not be generated.")
            settle_ids(self.folder / "release" / name / f"{name}.ipynb")
        return made

    def release(self, to: str | Path) -> list[Path]:
        """The student versions and what Binder needs, as a folder to be published: no source, no solution, no test."""
        to = Path(to)
        (to / "binder").mkdir(parents=True, exist_ok=True)
        released = sorted((self.folder / "release").glob("*/*.ipynb"))
        if not released:
            raise UniAdapterError(f"There is nothing to release in {self.folder}.", "Run `generate` first.")
        for notebook in released:
            shutil.copy(notebook, to / notebook.name)
        about = _pyproject(self.sources)
        (to / "README.md").write_text(release_readme([n.stem for n in released], self.sources), encoding="utf-8")
        shutil.copy(ROOT / "binder" / "environment.yml", to / "binder")
        address = f"https://github.com/{about['repository']}/archive/refs/heads/main.zip"
        script = f'#!/usr/bin/env bash\nset -euo pipefail\npip install --no-cache-dir "uniadapter_edu[notebooks] @ {address}"\n'
        (to / "binder" / "postBuild").write_text(script)
        (to / "binder" / "postBuild").chmod(0o755)
        return released

    def collect(self, name: str, folder: str | Path) -> list[str]:
        """What was handed in -> ``submitted/``, by nbgrader's collector. Returns the students' names."""
        archive = self.folder / "downloaded" / name / "archive"
        shutil.rmtree(archive.parent, ignore_errors=True)
        shutil.copytree(folder, archive)
        pattern = rf".*/(?P<student_id>[\w.-]+?)[/_](?P<file_id>{re.escape(name)})\.ipynb$"
        options = [f"--CourseDirectory.root={self.folder}", f"--FileNameCollectorPlugin.named_regexp={pattern}"]
        command = [sys.executable, "-m", "nbgrader", "zip_collect", name, "--force", *options]
        result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=self.folder)
        if result.returncode:
            raise UniAdapterError(f"Nothing was collected from {folder}.", result.stderr.strip()[-2000:])
        return self._students(name)

    def autograde(self, name: str, students: list[str] = ()) -> dict[str, str]:
        """Grade each submission; what is wrong with one concerns no other. Returns student -> what happened."""
        report = {}
        for student in list(students) or self._students(name):
            submitted = self.folder / "submitted" / student / name / f"{name}.ipynb"
            why = unreadable(submitted)
            if why:
                self._replace(submitted, name, why)
            result = self._api(name).autograde(name, student)
            if not result["success"] and not why:
                why = "It is not a notebook that can be run."
                self._replace(submitted, name, why)
                result = self._api(name).autograde(name, student)
            # An assignment that cannot be graded even as it was given out is no fault of the student's.
            _succeed(
                result, f"{student}'s {name} could not be graded, nor could an empty one: something is wrong here."
            )
            report[student] = f"unreadable: {why}" if why else "graded"
        return report

    def feedback(self, name: str) -> list[Path]:
        """``feedback/STUDENT/NAME/NAME.html`` of all that were graded."""
        _succeed(self._api(name).generate_feedback(name), f"There is no feedback on {name}.")
        return sorted((self.folder / "feedback").glob(f"*/{name}/{name}.html"))

    def gradebook(self) -> Path:
        """``grades.csv``, nbgrader's export; ``exercises.csv`` and ``grades.html``, points by exercise. Returns the first."""
        target = self.folder / "grades.csv"
        with Gradebook(self._url) as gradebook:
            CsvExportPlugin(to=str(target)).export(gradebook)
            rows = [
                {
                    "assignment": submission.assignment.name, "student": submission.student.id, "exercise": grade.name,
                    "points": grade.score, "of": grade.max_score, "to be graded by hand": grade.needs_manual_grade,
                }
                for assignment in gradebook.assignments
                for submission in sorted(assignment.submissions, key=lambda s: s.student.id)
                for notebook in submission.notebooks
                for grade in notebook.grades
            ]  # fmt: skip
        with open(self.folder / "exercises.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["assignment", "student", "exercise", "points", "of", "to be graded by hand"])
            writer.writeheader()
            writer.writerows(rows)
        (self.folder / "grades.html").write_text(_page(rows), encoding="utf-8")
        return target

    # ------------------------------------------------------------------------------------------------------- the parts

    def seed(self, name: str) -> str:
        """What the hidden tests of an assignment are drawn from. ``seed.txt`` is the course's secret, made once."""
        file = self.folder / "seed.txt"
        if not file.exists():
            file.write_text(secrets.token_hex(16) + "\n")
            file.chmod(0o600)
        # A notebook could print what its process was given: that must not tell the seed of the next assignment.
        return hashlib.sha256(f"{file.read_text().strip()}/{name}".encode()).hexdigest()

    @property
    def _url(self) -> str:
        return f"sqlite:///{self.folder / 'gradebook.db'}"

    def _api(self, name: str) -> NbGraderAPI:
        config = Config()
        config.CourseDirectory.root = str(self.folder)
        config.CourseDirectory.db_url = self._url
        config.ClearSolutions.code_stub = {"python": STUB}
        config.ClearSolutions.text_stub = NO_ANSWER
        before = ["ClearOutput", "DeduplicateIds", "OverwriteKernelspec", "OverwriteCells", "CheckCellMetadata"]
        after = ["LimitOutput", "SaveAutoGrades", "AssignLatePenalties", "CheckCellMetadata"]
        ours, theirs = "uniadapter_edu.grading.execute.", "nbgrader.preprocessors."
        config.Autograde.sanitize_preprocessors = [f"{ours}Restore", *(theirs + pre for pre in before)]
        config.Autograde.autograde_preprocessors = [f"{ours}ExecuteApart", *(theirs + pre for pre in after)]
        # nbgrader's feedback shows hidden tests: here they stay hidden, references and all.
        show = ["nbgrader.preprocessors.GetGrades", "nbgrader.preprocessors.ClearHiddenTests"]
        config.GenerateFeedback.preprocessors = [*show, "nbconvert.preprocessors.CSSHTMLHeaderPreprocessor"]
        config.ExecuteApart.update(self.limits | {"seed": self.seed(name)})
        return NbGraderAPI(config=config, log_level=logging.ERROR)

    def _students(self, name: str) -> list[str]:
        return sorted(path.parents[1].name for path in (self.folder / "submitted").glob(f"*/{name}/{name}.ipynb"))

    def _replace(self, submitted: Path, name: str, why: str) -> None:
        """What cannot be read is kept beside an empty assignment that says so, which is what nbgrader then grades."""
        submitted.rename(submitted.with_suffix(".unreadable"))
        notebook = nbformat.read(self.folder / "release" / name / f"{name}.ipynb", as_version=4)
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(UNREADABLE.format(why=why), id="unreadable"))
        nbformat.write(notebook, submitted)


def known(sources: Path = SOURCES) -> list[str]:
    return sorted(path.stem for path in sources.glob("a*.py"))


def source_notebook(name: str, sources: Path = SOURCES) -> nbformat.NotebookNode:
    """An assignment with solutions and hidden tests."""
    path = sources / f"{name}.py"
    if not path.is_file():
        raise UniAdapterError(f"There is no assignment {name!r}.", f"There are {', '.join(known(sources))}.")
    about = _pyproject(sources)
    return read(path, _course_notebooks(sources).setup_source(about["repository"]), badges(about["assignments"], name))


def badges(repository: str, name: str) -> str:
    """Links that open an assignment in the repository of the release, where there are no sources."""
    colab = f"https://colab.research.google.com/github/{repository}/blob/main/{name}.ipynb"
    binder = f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath=lab/tree/{name}.ipynb"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )


def release_readme(names: list[str], sources: Path = SOURCES) -> str:
    repository = _pyproject(sources)["assignments"]
    lines = ["# Assignments", "", "| | |", "|---|---|"]
    for name in names:
        title = source_notebook(name, sources).cells[0].source.splitlines()[0].removeprefix("# ")
        lines.append(f"| [{title}]({name}.ipynb) | {badges(repository, name)} |")
    return "\n".join(lines) + "\n"


def settle_ids(path: Path) -> None:
    """The same file for the same source: nbgrader's writer gives cells new ids."""
    notebook = nbformat.read(path, as_version=4)
    for i, cell in enumerate(notebook.cells):
        cell.id = f"{path.stem}-{i}"
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def student_versions(sources: Path = SOURCES) -> dict[str, str]:
    """name -> the student version, as it has to lie beside the sources."""
    with tempfile.TemporaryDirectory() as folder:
        names = Course(folder, sources).generate()
        return {name: (Path(folder) / "release" / name / f"{name}.ipynb").read_text(encoding="utf-8") for name in names}


def unreadable(path: Path) -> str | None:
    """Why a file is no notebook, None if it is one."""
    if path.stat().st_size > LARGEST_SUBMISSION:
        return f"The file is larger than {LARGEST_SUBMISSION / 1e6:g} MB."
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:
        return f"The file is not a notebook: {type(error).__name__}."
    return None


def _pyproject(sources: Path) -> dict:
    return tomllib.loads((sources.parents[2] / "pyproject.toml").read_text())["tool"]["uniadapter_edu"]


def _course_notebooks(sources: Path):
    """notebooks/make.py, which says how the course's notebooks begin."""
    spec = importlib.util.spec_from_file_location("make", sources.parents[1] / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _succeed(result: dict, otherwise: str) -> None:
    if not result["success"]:
        raise UniAdapterError(otherwise, (result.get("log") or result.get("error", ""))[-3000:])


def _page(rows: list[dict]) -> str:
    """A table for each assignment: students down, exercises across."""
    parts = ["<!doctype html><meta charset='utf-8'><title>Grades</title>"]
    parts.append("<style>body{font-family:sans-serif;margin:2em}td,th{padding:.3em .6em;text-align:right}")
    parts.append("td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f3f3f3}</style>")
    for assignment in dict.fromkeys(row["assignment"] for row in rows):
        mine = [row for row in rows if row["assignment"] == assignment]
        exercises = {row["exercise"]: row["of"] for row in mine}
        parts.append(f"<h1>{assignment}</h1><table><tr><th>student</th>")
        parts += [f"<th>{name.partition('-')[2]}<br>of {of:g}</th>" for name, of in exercises.items()]
        parts.append(f"<th>sum<br>of {sum(exercises.values()):g}</th></tr>")
        for student in dict.fromkeys(row["student"] for row in mine):
            theirs = {row["exercise"]: row for row in mine if row["student"] == student}
            parts.append(f"<tr><td>{html.escape(student)}</td>")
            for name in exercises:
                by_hand = name in theirs and theirs[name]["to be graded by hand"]
                parts.append(f"<td>{'by hand' if by_hand else format(theirs[name]['points'] or 0, 'g')}</td>")
            parts.append(f"<td>{sum(row['points'] or 0 for row in theirs.values()):g}</td></tr>")
        parts.append("</table>")
    return "\n".join(parts) + "\n"


# --------------------------------------------------------------------------------------------------------- the commands

STEPS = {"generate": 0, "release": 1, "collect": 2, "autograde": 1, "feedback": 1, "gradebook": 0}  # arguments needed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=[*STEPS, "students"])
    parser.add_argument("course", nargs="?", metavar="COURSE")
    parser.add_argument("rest", nargs="*", metavar="...", help="assignments, folders or students, as shown above")
    parser.add_argument("--sources", type=Path, default=SOURCES, help="the folder of the sources")
    parser.add_argument("--cell-seconds", type=int, help="the time that a cell may take (60)")
    parser.add_argument("--total-seconds", type=int, help="the time that a notebook may take (600)")
    parser.add_argument("--memory", type=int, help="bytes of memory that a process may take (6 GB)")
    parser.add_argument("--weaker", action="store_true", help="grade though something is not isolated on this machine")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", message="Object of type <Submitted")  # nbgrader's, of its own queries
    try:
        if options.step == "students":
            return _renew(options.sources)
        if not options.course or len(options.rest) < STEPS[options.step]:
            parser.error(f"{options.step} needs more arguments")
        limits = {key: getattr(options, key) for key in ("cell_seconds", "total_seconds", "memory")}
        course = Course(options.course, options.sources, **{k: v for k, v in limits.items() if v})
        _STEPS[options.step](course, options)
    except UniAdapterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _renew(sources: Path) -> int:
    for name, text in student_versions(sources).items():
        (sources.parent / f"{name}.ipynb").write_text(text, encoding="utf-8")
        print(f"{name}.ipynb")
    return 0


def _generate(course: Course, options) -> None:
    print("generated:", ", ".join(course.generate(options.rest)))


def _release(course: Course, options) -> None:
    released = course.release(options.rest[0])
    print(
        f"{len(released)} assignments in {options.rest[0]}, to be pushed to {_pyproject(course.sources)['assignments']}"
    )


def _collect(course: Course, options) -> None:
    students = course.collect(*options.rest[:2])
    print(f"{len(students)} submissions of {options.rest[0]}: {', '.join(students)}")


def _autograde(course: Course, options) -> None:
    missing = [name for name, there in sandbox.available().items() if not there]
    if missing and not options.weaker:
        raise UniAdapterError(
            f"On this machine a submission is not kept from: {', '.join(missing)}.",
            "Grade on Linux 5.13 or newer, or in a virtual machine of its own, or say --weaker.",
        )
    for student, what in course.autograde(options.rest[0], options.rest[1:]).items():
        print(f"{student}: {what}")


def _feedback(course: Course, options) -> None:
    print(f"{len(course.feedback(options.rest[0]))} pages in {course.folder / 'feedback'}")


def _gradebook(course: Course, options) -> None:
    print(f"{course.gradebook()}, exercises.csv, grades.html")


_STEPS = {
    "generate": _generate, "release": _release, "collect": _collect,
    "autograde": _autograde, "feedback": _feedback, "gradebook": _gradebook,
}  # fmt: skip
