"""Grading by nbgrader itself: a class of twelve and one unreadable file, from submissions to CSV and feedback.

What each of them does is in `CLASS`; what it should get stands beside it. The notebooks run in sandboxed processes, one
after the other, which is what takes the time.
"""

import csv
import functools
import json
import os

import nbformat
import pytest
import torch
from assignment_solutions import ADAPTER, LAYER_NORM, START
from nbgrader.api import Gradebook
from test_assignments import cells, reference, with_body

from uniadapter_edu import UniAdapterError
from uniadapter_edu.grading import course, execute, hidden, sandbox
from uniadapter_edu.grading.execute import Process, Stopped

NAME = "a1"
EXERCISES = {"layer-norm": LAYER_NORM, "adapter": ADAPTER, "start": START}
LIMITS = {"cell_seconds": 20, "total_seconds": 300, "memory": 4_000_000_000}
sandboxed = pytest.mark.skipif(not all(sandbox.available().values()), reason=f"here is only {sandbox.available()}")

# ---------------------------------------------------------------------------------------------------------- the class

ENDLESS = "while True:\n    pass"
BOMB = "hoard = []\nwhile True:\n    hoard.append(bytearray(200_000_000))"
FAKE = """
import torch, sys
print("6.0")
get_ipython().showtraceback = lambda *args, **kwargs: None
sys.displayhook = lambda value: None
torch.allclose = torch.equal = lambda *args, **kwargs: True
torch.testing.assert_close = lambda *args, **kwargs: None
6.0
"""
OVERWRITE = """
from uniadapter_edu import checks
from uniadapter_edu.grading import hidden
checks.a1.adapter = checks.a1.layer_norm = checks.a1.start = lambda *args: print("Right.")
hidden.grade = lambda answers, right, **points: sum(points.values())
hidden._differs = hidden._difference = lambda *args: None
hidden.ask = lambda function, cases, *args, **kwargs: [{"values": "right"} for _ in cases]
"""
SPY = """
import os, signal, socket, sqlite3

def attempt(name, action):
    try:
        print(name, "REACHED", action())
    except BaseException as error:
        print(name, "refused:", type(error).__name__)

attempt("solution", lambda: open(SOURCE).read()[:20])
attempt("gradebook", lambda: sqlite3.connect(GRADEBOOK).execute("update grade set auto_score = 99").rowcount)
attempt("neighbour", lambda: open(NEIGHBOUR, "a").write("spoilt"))
attempt("seed", lambda: open(SEED).read())
attempt("network", lambda: socket.create_connection(("127.0.0.1", 9), 2))
attempt("datagram", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)))
attempt("grader", lambda: os.kill(GRADER, signal.SIGTERM))
"""


@functools.cache
def references() -> dict:
    source = course.source_notebook(NAME)
    return {name: reference(exercise, source) for name, exercise in EXERCISES.items()}


def set_bodies(notebook, **bodies):
    """Write all functions: the reference solution, or the body that is given for an exercise."""
    for name, solution in references().items():
        body = bodies.get(name.replace("-", "_"))
        cells(notebook, solution=True)[name].source = solution if body is None else with_body(solution, body)


def write_wrong(notebook):
    set_bodies(notebook, layer_norm="return h", adapter="return h", start="pass")


def rename(notebook):
    set_bodies(notebook)
    for i, cell in enumerate(c for c in notebook.cells if "nbgrader" in c.metadata):
        cell.metadata.nbgrader.grade_id = f"mine-{i}"


def delete(notebook):
    set_bodies(notebook)
    gone = [*cells(notebook, grade=True).values(), cells(notebook, solution=True)["start"]]
    notebook.cells = [cell for cell in notebook.cells if not any(cell is g for g in gone)]


def first(notebook, code: str):
    """A cell of the student's own behind the imports."""
    notebook.cells.insert(3, nbformat.v4.new_code_cell(code))


def fake(notebook):
    write_wrong(notebook)
    first(notebook, FAKE)
    for cell in cells(notebook, grade=True, locked=True).values():
        cell.source = "5.0"
        cell.metadata.nbgrader.points = 500


def overwrite(notebook):
    write_wrong(notebook)
    first(notebook, OVERWRITE)


def raise_at_once(notebook):
    set_bodies(notebook, adapter="raise RuntimeError('no idea')")
    first(notebook, "1 / 0")


# student -> what is done to the notebook as it was given out, and points of (layer-norm, adapter, start)
CLASS = {
    "right": (set_bodies, (5, 6, 5)),
    "partly": (lambda n: set_bodies(n, adapter="return up(torch.relu(down(norm(h))))"), (5, 0, 5)),
    "wrong": (write_wrong, (0, 0, 0)),
    "empty": (lambda n: None, (0, 0, 0)),
    "renamed": (rename, (5, 6, 5)),
    "deleted": (delete, (5, 6, 0)),
    "endless": (lambda n: set_bodies(n, adapter=ENDLESS), (5, 0, 5)),
    "bomb": (lambda n: set_bodies(n, layer_norm=BOMB), (0, 6, 5)),
    "raising": (raise_at_once, (5, 0, 5)),
    "faking": (fake, (0, 0, 0)),
    "overwriting": (overwrite, (0, 0, 0)),
    "spying": (write_wrong, (0, 0, 0)),
}


@pytest.fixture(scope="module")
def graded(tmp_path_factory):
    """The course's folder after the whole route, and what each step reported."""
    root, handed_in = tmp_path_factory.mktemp("course"), tmp_path_factory.mktemp("handed-in")
    steps = course.Course(root, **LIMITS)
    steps.generate([NAME])
    released = root / "release" / NAME / f"{NAME}.ipynb"
    secrets = {
        "SOURCE": str(course.SOURCES / f"{NAME}.py"),
        "GRADEBOOK": str(root / "gradebook.db"),
        "NEIGHBOUR": str(root / "submitted" / "right" / NAME / f"{NAME}.ipynb"),
        "SEED": str(root / "seed.txt"),
        "GRADER": os.getpid(),
    }
    for student, (change, _) in CLASS.items():
        notebook = nbformat.read(released, as_version=4)
        change(notebook)
        if student == "spying":
            first(notebook, "\n".join(f"{k} = {v!r}" for k, v in secrets.items()) + SPY)
        nbformat.write(notebook, handed_in / f"{student}_{NAME}.ipynb")
    (handed_in / f"broken_{NAME}.ipynb").write_text("{ this is no notebook")
    collected = steps.collect(NAME, handed_in)
    report = steps.autograde(NAME)
    pages = {path.parents[1].name: path.read_text() for path in steps.feedback(NAME)}
    steps.gradebook()
    return {"root": root, "collected": collected, "report": report, "pages": pages}


def rows(graded, name):
    with open(graded["root"] / name, newline="") as file:
        return list(csv.DictReader(file))


def test_all_are_collected_and_graded(graded):
    assert graded["collected"] == sorted([*CLASS, "broken"])
    what = graded["report"]
    assert {student for student, text in what.items() if text == "graded"} == set(CLASS)
    assert what["broken"].startswith("unreadable")


@pytest.mark.parametrize("student", CLASS)
def test_each_gets_what_it_should(student, graded):
    given = {r["exercise"]: float(r["points"]) for r in rows(graded, "exercises.csv") if r["student"] == student}
    expected = dict(zip((f"a1-{name}-test" for name in EXERCISES), CLASS[student][1]))
    assert {name: given[name] for name in expected} == expected


def test_the_gradebook_is_csv(graded):
    found = {r["student_id"]: (float(r["score"]), float(r["max_score"])) for r in rows(graded, "grades.csv")}
    assert found == {s: (sum(p), 20) for s, (_, p) in CLASS.items()} | {"broken": (0, 20)}


def test_written_answers_wait_for_a_person_unless_there_is_none(graded):
    waiting = {
        r["student"]: r["to be graded by hand"] for r in rows(graded, "exercises.csv") if "reflection" in r["exercise"]
    }
    assert waiting["empty"] == waiting["broken"] == "False"


@pytest.mark.parametrize(
    ("student", "said"),
    [
        ("right", "values: right (4 of 4)"),
        ("partly", "other numbers were expected"),
        ("empty", "not answered"),
        ("endless", "took more than the 20 seconds"),
        ("bomb", "MemoryError"),
        ("raising", "RuntimeError: no idea"),
        ("broken", "could not be read"),
    ],
)
def test_feedback_says_why(student, said, graded):
    assert said in graded["pages"][student]


def test_feedback_keeps_hidden_tests_hidden(graded):
    for page in graded["pages"].values():
        assert "HIDDEN TESTS" not in page and "_hidden" not in page and "_reference" not in page


@sandboxed
def test_a_spy_reaches_nothing(graded):
    page = graded["pages"]["spying"]  # shows the spy's code and what it printed
    for what in ("solution", "gradebook", "neighbour", "seed", "network", "datagram", "grader"):
        assert f"{what} refused" in page and f"{what} REACHED" not in page


def test_the_seed_stays_private(graded):
    seed = (graded["root"] / "seed.txt").read_text().strip()
    assert len(seed) == 32 and not any(seed in page for page in graded["pages"].values())
    assert oct((graded["root"] / "seed.txt").stat().st_mode)[-3:] == "600"


# ---------------------------------------------------------------------------------------------------- the other steps


def test_the_gradebook_knows_points_and_roles(tmp_path):
    steps = course.Course(tmp_path)
    assert steps.generate(["a1", "a4"]) == ["a1", "a4"]
    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as gradebook:
        assert {a.name: a.max_score for a in gradebook.assignments} == {"a1": 20, "a4": 20}


def test_a_release_holds_no_source_and_opens_elsewhere(tmp_path):
    steps = course.Course(tmp_path / "course")
    with pytest.raises(UniAdapterError, match="nothing to release"):
        steps.release(tmp_path / "early")
    steps.generate(["a1"])
    steps.release(tmp_path / "out")
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert names == {"a1.ipynb", "README.md", "binder/environment.yml", "binder/postBuild"}
    for page in ("a1.ipynb", "README.md"):
        text = (tmp_path / "out" / page).read_text()
        assert "BEGIN HIDDEN" not in text and "uniadapter_edu_assignments/" in text


def test_what_is_wrong_is_said_without_a_traceback(tmp_path, capsys):
    assert course.main(["generate", str(tmp_path), "a9"]) == 1
    assert "There is no assignment 'a9'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        course.main(["collect", str(tmp_path), "a1"])


def test_a_machine_without_walls_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sandbox, "available", lambda: {"files": False, "network": True})
    assert course.main(["autograde", str(tmp_path), "a1"]) == 1
    assert "not kept from: files" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- the process


@sandboxed
def test_a_process_that_cannot_be_interrupted_is_ended(monkeypatch):
    monkeypatch.setattr(execute, "GRACE", 3)
    with Process(4_000_000_000, 1, 600) as process:
        assert process.run("print('here')")[0].text == "here\n"
        stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
        with pytest.raises(Stopped, match="could not be interrupted"):
            process.run(stubborn)
        with pytest.raises(Stopped, match="could not be interrupted"):
            process.run("print('again')")
    assert not process.folder.exists()


def test_answers_survive_the_way_and_nothing_else_does(tmp_path):
    answers = [
        {"values": [torch.arange(3), 1, 2.5, None, "x", True], "more": {"a": torch.ones(2, dtype=torch.float64)}}
    ]
    hidden.save(answers, tmp_path / "answers")
    back = hidden.load(tmp_path / "answers")
    assert hidden._differs(back[0]["values"], answers[0]["values"]) is None
    assert hidden._differs(back[0]["more"], answers[0]["more"]) is None
    (tmp_path / "answers").unlink()
    (tmp_path / "answers").symlink_to("/etc/passwd")
    for bad in (None, "[[[", json.dumps({"tensor": "99"})):
        if bad:
            (tmp_path / "answers").unlink()
            (tmp_path / "answers").write_text(bad)
        with pytest.raises(ValueError, match="is no answer"):
            hidden.load(tmp_path / "answers")
