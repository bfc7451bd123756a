"""The assignments: the grading tells wrong solutions from right ones, and what students get gives nothing away.

Here the hidden tests run in this process, by the same cells that nbgrader runs; tests/test_grading.py has nbgrader itself.
`pytest tests/test_assignments.py -s` prints the table of what was killed and what was let through.
"""

import contextlib
import io
import os
import re
import subprocess
import sys
import textwrap

import nbformat
import pytest
from assignment_solutions import EXERCISES

from uniadapter_edu import checks
from uniadapter_edu.grading import course, hidden
from uniadapter_edu.grading.execute import value_of

SEEDS = ("public", "another")
IDS = [f"{e.assignment}-{e.test}" for e in EXERCISES]
SOLUTION = re.compile(r"( *)### BEGIN SOLUTION\n(.*?)\n *### END SOLUTION", re.DOTALL)


@pytest.fixture(scope="module")
def sources():
    """Assignment -> its notebook with solutions and hidden tests."""
    return {name: course.source_notebook(name) for name in course.known()}


def cells(notebook, **role):
    """grade_id without the assignment's name -> cell, of the cells with this role, such as solution=True."""
    found = [c for c in notebook.cells if all(c.metadata.get("nbgrader", {}).get(k) == v for k, v in role.items())]
    return {c.metadata.nbgrader.grade_id.partition("-")[2]: c for c in found}


def imports(notebook) -> str:
    """The first cell behind the one that installs the package."""
    return [c for c in notebook.cells if c.cell_type == "code"][1].source


def reference(exercise, notebook) -> str:
    return cells(notebook, solution=True)[exercise.solution].source


def with_body(source: str, body: str) -> str:
    """The function with another body."""
    return SOLUTION.sub(lambda found: textwrap.indent(body, found[1]), source)


def wrong_source(wrong, source: str) -> str:
    if not wrong.old:
        return with_body(source, wrong.new)
    assert source.count(wrong.old) == 1, (
        f"{wrong.name}: the snippet stands {source.count(wrong.old)} times in\n{source}"
    )
    return source.replace(wrong.old, wrong.new)


def solved(code: str, notebook) -> dict:
    """What a student's process knows when this solution was run."""
    namespace = {"__name__": "__main__"}
    exec(imports(notebook), namespace)
    exec(code, namespace)
    return namespace


def points(exercise, code: str, notebook) -> tuple[float, str]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        given = value_of(cells(notebook, grade=True)[exercise.test].source, solved(code, notebook))
    return given, printed.getvalue()


def told(exercise, code: str, notebook) -> str:
    """What the student-facing check says: the error, or what it prints."""
    check = getattr(getattr(checks, exercise.assignment), exercise.check)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            check(solved(code, notebook)[exercise.function])
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return printed.getvalue()


# ------------------------------------------------------------------------------------------------------- the catalogue


@pytest.fixture(scope="module")
def table():
    """Rows of (exercise, wrong, killed, named, right, false alarms), printed at the end."""
    rows = []
    yield rows
    heads = ("exercise", "wrong", "killed", "named", "right", "false alarms")
    print(
        "\n"
        + "\n".join("  ".join(str(x).ljust(w) for x, w in zip(row, (26, 5, 6, 5, 5, 12))) for row in [heads, *rows])
    )
    totals = [sum(row[i] for row in rows) for i in range(1, 6)]
    if totals and totals[0] and totals[3]:
        print(f"kill rate {100 * totals[1] / totals[0]:.0f} %, false alarms {totals[4]} of {totals[3]}")


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_wrong_solutions_lose_what_they_should_and_right_ones_nothing(exercise, sources, table, monkeypatch):
    notebook = sources[exercise.assignment]
    source, full = reference(exercise, notebook), cells(notebook, grade=True)[exercise.test].metadata.nbgrader.points
    problems, killed, named, alarms = [], 0, 0, 0
    for wrong in exercise.wrong:
        code = wrong_source(wrong, source)
        given = [(monkeypatch.setenv(hidden.SEED, seed), points(exercise, code, notebook))[1] for seed in SEEDS]
        killed += all(g < full for g, _ in given)
        for g, why in given:
            if g != wrong.points:
                problems.append(f"{wrong.name}: {g} points, expected {wrong.points}\n{why}")
        says = told(exercise, code, notebook)
        recognised = not wrong.says or (says.startswith("AssertionError") and re.search(wrong.says, says))
        named += bool(recognised)
        if not recognised:
            problems.append(f"{wrong.name}: the check says {says!r}, expected {wrong.says!r}")
    right = {"reference": source} | {name: with_body(source, body) for name, body in exercise.right.items()}
    for name, code in right.items():
        for seed in SEEDS:
            monkeypatch.setenv(hidden.SEED, seed)
            given, why = points(exercise, code, notebook)
            if given != full:
                alarms += 1
                problems.append(f"{name}: {given} of {full} points with the seed {seed!r}\n{why}")
        if not (says := told(exercise, code, notebook)).startswith("Right."):
            alarms += 1
            problems.append(f"{name}: the check says {says!r}")
    table.append((f"{exercise.assignment} {exercise.test}", len(exercise.wrong), killed, named, len(right), alarms))
    assert not problems, "\n\n".join(problems)


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_the_catalogue_is_large_enough(exercise):
    assert len(exercise.wrong) >= 8 and len(exercise.right) >= 4
    assert len({w.name for w in exercise.wrong}) == len(exercise.wrong)


def test_every_graded_function_is_in_the_catalogue(sources):
    tests = {(name, test) for name, notebook in sources.items() for test in cells(notebook, grade=True, locked=True)}
    assert tests == {(e.assignment, e.test) for e in EXERCISES}


# ---------------------------------------------------------------------------------------------- what students are given


@pytest.fixture(scope="module")
def students():
    """Assignment -> the text of its student version, generated anew by nbgrader."""
    return course.student_versions()


def test_committed_student_versions_are_those_that_the_sources_give(students):
    for name, text in students.items():
        committed = course.SOURCES.parent / f"{name}.ipynb"
        assert committed.read_text(encoding="utf-8") == text, f"{name}: run `python -m uniadapter_edu.grading students`"
    assert {path.stem for path in course.SOURCES.parent.glob("*.ipynb")} == set(students)


def secret_lines(notebook) -> set[str]:
    """Lines of solutions and hidden tests that say something, without their indentation."""
    found = set()
    for cell in notebook.cells:
        for mark in ("SOLUTION", "HIDDEN TESTS"):
            for part in re.findall(rf"### BEGIN {mark}\n(.*?)### END {mark}", cell.source, re.DOTALL):
                found |= {line.strip() for line in part.splitlines() if len(line.strip()) > 12}
    return found


def test_student_versions_hold_no_line_of_a_solution_or_hidden_test(sources, students):
    for name, text in students.items():
        student = nbformat.reads(text, as_version=4)
        public = {line.strip() for cell in student.cells for line in cell.source.splitlines()}
        # What the source shows openly, such as an import, is no secret.
        shown = {line.strip() for c in sources[name].cells for line in re.sub(
            r"### BEGIN (\w+)(?: TESTS)?\n.*?### END \1(?: TESTS)?", "", c.source, flags=re.DOTALL).splitlines()}  # fmt: skip
        secrets = secret_lines(sources[name])
        assert len(secrets) > 30
        assert not (secrets & public) - shown
        assert "BEGIN" not in text and "_hidden" not in text and "_reference" not in text


def test_student_versions_have_nbgraders_metadata(students):
    for name, text in students.items():
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
        graded = cells(notebook, grade=True)
        assert sum(c.metadata.nbgrader.points for c in graded.values()) == 20, name
        assert all(c.metadata.nbgrader.schema_version == 3 for c in graded.values())
        assert all(c.metadata.nbgrader.locked for c in cells(notebook, grade=True, solution=False).values())
        assert cells(notebook, grade=True, solution=True), f"{name} has no written part"


def test_every_assignment_says_what_it_should(students):
    for name, text in students.items():
        prose = "\n".join(c.source for c in nbformat.reads(text, as_version=4).cells if c.cell_type == "markdown")
        for part in (
            "You will be able to",
            "**Points** 20",
            "**Time**",
            "**Hand in**",
            "**Rubric**",
            "uniadapter_edu_assignments/",
        ):
            assert part in prose, f"{name} lacks {part}"


def code(text: str, *leave_out: str) -> str:
    found = [c.source for c in nbformat.reads(text, as_version=4).cells if c.cell_type == "code"]
    return "\n".join(source for source in found[1:] if not any(word in source for word in leave_out))


def test_an_untouched_student_version_runs_and_gets_nothing(students, sources, capsys):
    for name, text in students.items():
        namespace = {"__name__": "__main__"}
        exec(code(text, "rows = study("), namespace)  # the study of a6 trains; everything else is run
        assert "Not answered yet" in capsys.readouterr().out
        for test in cells(sources[name], grade=True, locked=True).values():
            assert value_of(test.source, namespace) == 0


def test_student_versions_run_with_nothing_but_the_wheel(students, installed_wheel, tmp_path):
    """As in Colab: an empty folder, the installed wheel, and none of nbgrader's modules."""
    block = "import sys\nfor name in ('nbgrader', 'jupyter_client', 'nbformat', 'IPython'): sys.modules[name] = None\n"
    script = block + "\n".join(code(text, "rows = study(") for text in students.values())
    (tmp_path / "all.py").write_text(script + "\nimport uniadapter_edu\nprint(uniadapter_edu.__file__)")
    environment = os.environ | {"PYTHONPATH": str(installed_wheel), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "all.py"]
    result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().endswith(str(installed_wheel / "uniadapter_edu" / "__init__.py"))
