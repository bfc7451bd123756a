"""Makes and checks the course's notebooks. What a maintainer types after having changed one:

    python notebooks/make.py execute 03        # run it at its defaults, in place; tidy it; renew its picture and the maps
    python notebooks/make.py check             # what the tests ask of a notebook's form; all notebooks unless named
    python notebooks/make.py table             # seconds, peak MB, cells, words, figures of each, at its defaults
    python notebooks/make.py stamp --repository OWNER/NAME      # the repository's address, once it is known

NAMES are beginnings of file names: `03`, `A`, `03_one_bottleneck_adapter`. The tests (tests/test_notebooks.py) use two more:
`quick NAME` runs one with quick=True in the current folder, `rerun NAME` compares one with its committed outputs. Both
print one line of JSON.

How a notebook is written is said in `problems`, which is what `check` calls. An author writes neither the first code cell
nor the badges: `execute` and `stamp` put them there, from `[tool.uniadapter_edu]` in pyproject.toml.
"""

import argparse
import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import nbformat

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
SANITIZE = ROOT / "tests" / "nbval_sanitize.cfg"
CELL_SECONDS = 600  # a cell that takes longer hangs
LONGEST_CELL = 20  # lines
LONGEST_LINE = 105  # characters; a page shows about that many
WIDEST_FIGURE = 940  # pixels, likewise
LARGEST_MB = 3.0  # of a notebook's file; GitHub shows no large ones
PICTURE_WIDTH = 360  # pixels, on the map

# The course: group -> file name -> title, and what it is about. Maps show a notebook once it exists.
COURSE = {
    "Begin": {
        "00_quickstart": ("Quickstart", "Search pictures with words, before and after two minutes of adaptation."),
        "01_meet_blip": ("Meet BLIP", "Three encoders, and two ways to compare a picture with a sentence."),
        "02_freeze_the_backbone": ("Freeze the backbone", "What freezing is, what it saves, and what it does not."),
    },
    "Build UniAdapter": {
        "03_one_bottleneck_adapter": (
            "One bottleneck adapter",
            "From the residual idea to ten lines of code: start, scale, place and size of an adapter.",
        ),
        "04_unimodal_adapters": ("Unimodal adapters", "In the vision and in the text encoder: what each can repair."),
        "05_cross_modal_adapters": ("Cross-modal adapters", "The third branch, and why it reuses the text up."),
        "06_weight_sharing": ("Weight sharing", "One down-projection for all: what sharing costs and gives."),
    },
    "Use it": {
        "07_train_on_a_small_subset": ("Train on a small subset", "Losses, hard negatives, and 50 to 2,000 examples."),
        "08_video_and_frames": ("Video and frames", "Frames as tokens, and attention that knows which frame matters."),
        "09_questions_and_captions": ("Questions and captions", "The decoder's tasks with the same adapter."),
    },
    "Study it": {
        "10_compare_and_ablate": ("Compare and ablate", "Seeds, spread and equal budgets: the paper's claims, tried."),
        "11_a_real_blip": ("A real BLIP", "The published checkpoint on photographs, on a GPU."),
        "12_adapter_microscope": (
            "The adapter microscope",
            "What trained adapters do: views to turn, switch and look through, and what they show.",
        ),
        "A_paper_and_code": ("The paper and its code", "Where the two differ, each difference run and seen."),
    },
}
NOTEBOOKS = {name: about for group in COURSE.values() for name, about in group.items()}

SETUP = """\
# Colab has no uniadapter_edu yet: install it there. A torch that is installed stays the one it is.
import importlib.metadata
import importlib.util

if importlib.util.find_spec("uniadapter_edu") is None:
    torch = " ".join(f"torch=={d.version}" for d in importlib.metadata.distributions(name="torch"))
    %pip install --quiet "uniadapter_edu[notebooks] @ git+https://github.com/REPOSITORY" {torch}"""
PARAMETERS = """\
quick = False  # True: fewer steps, to see in seconds that all of it runs
full = False  # True: more steps than the figures below were made with, for readers with patience"""

# ------------------------------------------------------------------------------------------------------------ notebooks


class Mistake(Exception):
    """What whoever typed the command can put right; printed without a traceback."""


def find(names: list[str]) -> list[Path]:
    """The notebooks that `names` begin, in the course's order; all that exist without names."""
    order = list(NOTEBOOKS)
    existing = sorted(FOLDER.glob("*.ipynb"), key=lambda p: (order.index(p.stem) if p.stem in order else 99, p.stem))
    for name in names:
        if not any(path.stem.startswith(name) for path in existing):
            raise Mistake(f"No notebook begins with {name!r}. There are: {', '.join(p.stem for p in existing)}.")
    return [path for path in existing if not names or path.stem.startswith(tuple(names))]


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def write(notebook: nbformat.NotebookNode, path: Path) -> None:
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def figures(notebook) -> list[tuple]:
    """(cell, output) of every picture."""
    outputs = [(cell, output) for cell in code_cells(notebook) for output in cell.outputs]
    return [(cell, output) for cell, output in outputs if "image/png" in output.get("data", {})]


def words(notebook, kind: str) -> int:
    return sum(len(re.findall(r"[^\W\d_]{2,}", cell.source)) for cell in notebook.cells if cell.cell_type == kind)


def tidy(notebook) -> None:
    """Drop what differs from run to run or machine to machine, so that a diff shows what was changed."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        }
    )
    for cell in notebook.cells:
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})


# -------------------------------------------------------------------------------------------------------------- running


def run(path: Path, output: Path, parameters: dict, folder: Path) -> None:
    """Execute with papermill, in `folder`. Raises `Mistake`, naming notebook and cell, if a cell fails."""
    import papermill
    from papermill.exceptions import PapermillExecutionError, strip_color

    if unknown := set(parameters) - set(papermill.inspect_notebook(str(path))):
        raise Mistake(f"{path.name} has no parameter {', '.join(sorted(unknown))}.")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # small matrices: a second thread costs more than it gives
    os.environ["PYTHONWARNINGS"] = "ignore::DeprecationWarning"  # of the tools around the kernel
    try:
        papermill.execute_notebook(
            str(path), str(output), parameters, cwd=str(folder), kernel_name="python3", progress_bar=False,
            execution_timeout=CELL_SECONDS, extra_arguments=["--log-level=40"],
        )  # fmt: skip
    except PapermillExecutionError as error:
        trace = strip_color("\n".join(error.traceback))[-3000:]
        place = f"{path.name}, code cell {error.exec_count}, {error.ename}: {error.evalue}"
        raise Mistake(f"{place}\n\n{error.source}\n\n{trace}") from None
    except TimeoutError as error:
        raise Mistake(f"{path.name}: a cell took more than {CELL_SECONDS} s. {error}") from None


def compare(path: Path) -> None:
    """Run at the defaults and compare with the committed outputs, in an empty folder. Raises `Mistake` with nbval's report."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options = f"--nbval --nbval-current-env --nbval-cell-timeout {CELL_SECONDS} --nbval-sanitize-with {SANITIZE} -p no:cacheprovider"
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(path, folder)
        (Path(folder) / "pytest.ini").write_text("[pytest]\n")  # nothing of a pytest.ini further up
        command = [sys.executable, "-m", "pytest", "-q", *options.split(), path.name]
        result = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
    if result.returncode:
        report = re.sub(r"\x1b\[[\d;]*m", "", result.stdout + result.stderr)
        raise Mistake(f"{path.name} gives other outputs than the committed ones.\n\n{report[-6000:]}")


def measured(action, path: Path) -> dict:
    """What running a notebook took: seconds, the kernel's peak memory (MB), and what went wrong, if anything did."""
    import resource

    start, error = time.perf_counter(), None
    try:
        action()
    except Mistake as mistake:
        error = str(mistake)
    seconds = time.perf_counter() - start
    # Of the largest process that was started and has ended, which is the kernel. Kilobytes; on a Mac bytes.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"name": path.stem, "seconds": round(seconds, 1), "peak_mb": round(peak / 1e6), "error": error}


def counts(path: Path) -> dict:
    notebook = read(path)
    return {
        "name": path.stem,
        "cells": len(notebook.cells),
        "words": words(notebook, "markdown"),
        "figures": len(figures(notebook)),
    }


def table_text(rows: list[dict]) -> str:
    """Rows of `measured` and `counts` together as aligned text. What is missing is left blank."""
    columns = ["name"] + [key for key in dict.fromkeys(k for row in rows for k in row) if key not in ("name", "error")]
    cells = [[column.replace("_mb", " MB").replace("_", " ") for column in columns]]
    cells += [[str(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = [[line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:])] for line in cells]
    return "\n".join("  ".join(line) for line in lines)


def execute(path: Path) -> None:
    """Run at the defaults, in place, from what is written in the cells; then tidy, and renew the picture for the maps."""
    notebook = read(path)
    stamp_notebook(notebook, repository(), path)
    tidy(notebook)  # a new notebook may lack the name of its kernel
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / path.name, Path(folder) / "executed.ipynb"
        (Path(folder) / "empty").mkdir()
        write(notebook, source)
        run(source, output, {}, Path(folder) / "empty")
        notebook = read(output)
    tidy(notebook)
    write(notebook, path)
    save_picture(notebook, path)


# ------------------------------------------------------------------------------------------------------------- the form

SECTIONS = ("**You will be able to**", "**Time**", "**Before this**", "## Summary", "## What next", "## References")
TRACES = re.compile(r"(?:/(?:home|root|tmp|work|Users|content)/\S*| at 0x[0-9a-f]+)")


def problems(path: Path) -> list[str]:
    """What is wrong with a notebook's form, one sentence each; none if it is fit to be committed.

    Executed from top to bottom without errors, warnings or leftovers; the first two code cells as everywhere; short cells;
    alternative text for every figure; the sections that a reader relies on; exercises with a check and a folded hint.
    """
    notebook = read(path)
    rules = (_executed, _metadata, _first_cells, _short_cells, _figures, _sections, _exercises, _traces)
    found = [problem for rule in rules for problem in rule(notebook)]
    if words(notebook, "markdown") <= words(notebook, "code"):
        found.append("there are more words of code than of prose.")
    if path.stat().st_size > LARGEST_MB * 1e6:
        found.append(f"the file is larger than {LARGEST_MB} MB: draw smaller figures.")
    if path.stem not in NOTEBOOKS:
        found.append("it is not in make.py's COURSE.")
    elif not notebook.cells[0].source.startswith(f"# {heading(path.stem)}\n"):
        found.append(f"it does not begin with the title `# {heading(path.stem)}`, as make.py's COURSE has it.")
    return found


def _executed(notebook):
    cells = code_cells(notebook)
    if [cell.execution_count for cell in cells] != list(range(1, len(cells) + 1)):
        yield "its code cells are not counted 1, 2, 3 …: run `make.py execute`, and leave no cell empty."
    for cell in cells:
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"code cell {cell.execution_count} ends in {output.ename}."
            if output.get("name") == "stderr":
                yield f"code cell {cell.execution_count} writes to stderr: {output.text[:80]!r}. Silence it at its source."


def _metadata(notebook):
    if extra := set(notebook.metadata) - {"kernelspec", "language_info"}:
        yield f"its metadata hold {', '.join(sorted(extra))}: run `make.py execute`."
    if extra := {key for cell in notebook.cells for key in cell.metadata} - {"tags"}:
        yield f"the metadata of its cells hold {', '.join(sorted(extra))}: run `make.py execute`."


def _first_cells(notebook):
    first, second = (code_cells(notebook) + [None, None])[:2]
    if first is None or first.source != setup_source(repository()):
        yield "its first code cell is not the one that installs the package: run `make.py stamp`."
    if second is None or not second.source.startswith(PARAMETERS) or second.metadata.get("tags") != ["parameters"]:
        yield f"its second code cell is not tagged `parameters`, or does not begin with:\n{PARAMETERS}"
    if len([c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]) > 1:
        yield "several cells are tagged `parameters`."


def _short_cells(notebook):
    for cell in code_cells(notebook)[1:]:  # the first is not the author's
        if (n := len(cell.source.splitlines())) > LONGEST_CELL:
            yield f"code cell {cell.execution_count} has {n} lines, more than {LONGEST_CELL}."
        if (n := max(map(len, cell.source.splitlines()), default=0)) > LONGEST_LINE:
            yield f"code cell {cell.execution_count} has a line of {n} characters, more than {LONGEST_LINE}."


def _figures(notebook):
    found = [(cell, output.metadata.get("image/png", {})) for cell, output in figures(notebook)]
    for cell, about in found:
        if len(about.get("alt", "")) < 20:
            yield f"a figure of code cell {cell.execution_count} has no alternative text: viz.show(figure, alt=…)."
        if about.get("width", 0) > WIDEST_FIGURE:
            yield f"a figure of code cell {cell.execution_count} is wider than {WIDEST_FIGURE} pixels."
    if len({about.get("alt") for _, about in found}) < len(found):
        yield "two figures have the same alternative text."
    if not found:
        yield "it has no figure."


def _sections(notebook):
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    if missing := [name for name in SECTIONS if name not in prose]:
        yield f"it lacks {', '.join(missing)}."


def _exercises(notebook):
    starts = [i for i, cell in enumerate(notebook.cells) if re.search(r"^### Exercise \d", cell.source, re.MULTILINE)]
    if not 2 <= len(starts) <= 4:
        yield f"it has {len(starts)} exercises (`### Exercise 1`), expected two to four."
    for start, end in zip(starts, starts[1:] + [len(notebook.cells)]):
        cells = notebook.cells[start:end]
        title = re.search(r"^### (Exercise \d)", cells[0].source, re.MULTILINE)[1]
        if not any(re.search(r"\bchecks\.\w+\(", cell.source) for cell in cells if cell.cell_type == "code"):
            yield f"{title} calls no check."
        if not any("<details>" in cell.source for cell in cells):
            yield f"{title} has no folded hint (<details>)."


def _traces(notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            text = output.get("text", "") + "".join(
                v for k, v in output.get("data", {}).items() if k.startswith("text/")
            )
            if found := TRACES.search(text):
                yield f"code cell {cell.execution_count} prints {found[0]!r}, which is another on every machine."


# ----------------------------------------------------------------------------------------------- the repository's address


def repository() -> str:
    """OWNER/NAME on GitHub: `repository` of [tool.uniadapter_edu] in pyproject.toml, the only place that decides."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["uniadapter_edu"]["repository"]


def badges(repository: str, name: str | None = None) -> str:
    """A line of two badges, for one notebook or for the whole course."""
    colab = f"https://colab.research.google.com/github/{repository}"
    page = f"notebooks/{name}.ipynb" if name else "notebooks/README.md"
    colab += f"/blob/main/{page}" if name else ""
    binder = f"https://mybinder.org/v2/gh/{repository}/HEAD?urlpath=lab/tree/{page}"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab}) "
        f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})"
    )


BADGES = re.compile(r"^\[!\[Open in Colab\].*$", re.MULTILINE)


def setup_source(repository: str) -> str:
    return SETUP.replace("REPOSITORY", repository)


def stamp_notebook(notebook, repository: str, path: Path) -> None:
    """Title, badges and the first code cell. Prose below the badges stays as it is."""
    first, line = notebook.cells[0], badges(repository, path.stem)
    title, _, rest = first.source.partition("\n")
    rest = BADGES.sub("", rest).strip("\n")
    first.source = f"{title}\n\n{line}" + (f"\n\n{rest}" if rest else "")
    code = code_cells(notebook)
    if code and "importlib.util.find_spec" in code[0].source:
        code[0].source = setup_source(repository)
    else:
        notebook.cells.insert(1, nbformat.v4.new_code_cell(setup_source(repository)))


def stamp(address: str | None) -> None:
    """Write the address into pyproject.toml if one is given, and then everywhere it stands."""
    if address:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", address):
            raise Mistake(f"The repository is {address!r}, expected OWNER/NAME as in github.com/OWNER/NAME.")
        pyproject = ROOT / "pyproject.toml"
        text = pyproject.read_text()
        pyproject.write_text(re.sub(r'^repository = ".*"$', f'repository = "{address}"', text, flags=re.MULTILINE))
    for path in find([]):
        notebook = read(path)
        stamp_notebook(notebook, repository(), path)
        write(notebook, path)
    draw_maps()


# ------------------------------------------------------------------------------------------------------------- the maps


def heading(name: str) -> str:
    return f"{name.partition('_')[0]} · {NOTEBOOKS[name][0]}"


def cover(notebook) -> tuple | None:
    """(cell, output) of the picture that stands for a notebook: that of the cell tagged `cover`, or the first."""
    found = figures(notebook)
    return next((pair for pair in found if "cover" in pair[0].metadata.get("tags", [])), found[0] if found else None)


def save_picture(notebook, path: Path) -> None:
    """The cover as a small PNG, notebooks/images/NAME.png. Not written anew if it would be the same file."""
    from PIL import Image

    if not (found := cover(notebook)):
        return
    picture = Image.open(io.BytesIO(base64.b64decode(found[1].data["image/png"]))).convert("RGB")
    picture.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.quantize(64).save(content, "PNG", optimize=True)
    target = FOLDER / "images" / f"{path.stem}.png"
    target.parent.mkdir(exist_ok=True)
    if not target.exists() or target.read_bytes() != content.getvalue():
        target.write_bytes(content.getvalue())


def picture(path: Path, folder: str) -> str:
    found = cover(read(path))
    alt = found[1].metadata.get("image/png", {}).get("alt", "") if found else ""
    alt = alt.replace('"', "'").replace("|", "/").replace("\n", " ")
    return f'<img src="{folder}images/{path.stem}.png" width="220" alt="{alt}">'


def course_map() -> str:
    """The body of notebooks/README.md: every notebook with its picture, or as planned."""
    lines = []
    for group, notebooks in COURSE.items():
        lines += [f"\n## {group}\n", "| | |", "|---|---|"]
        for name, (_, about) in notebooks.items():
            path = FOLDER / f"{name}.ipynb"
            if path.exists():
                link = f"[**{heading(name)}**]({name}.ipynb)"
                lines.append(f"| [{picture(path, '')}]({name}.ipynb) | {link}<br>{about} |")
            else:
                lines.append(f"| | {heading(name)} (not written yet)<br>{about} |")
    return "\n".join(lines).strip("\n")


def short_map() -> str:
    """For the main README: the pictures of those that exist, three in a row."""
    existing = [path for path in find([]) if path.stem in NOTEBOOKS]
    cells = [
        f'<a href="notebooks/{path.name}">{picture(path, "notebooks/")}<br>{heading(path.stem)}</a>'
        for path in existing
    ]
    rows = [cells[i : i + 3] for i in range(0, len(cells), 3)]
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n{body}\n</table>"


def pages() -> dict[Path, str]:
    """The two README files as they should be: what stands between `<!-- NAME -->` and `<!-- end of NAME -->` is made here."""
    parts = {
        ROOT / "README.md": {"badges": badges(repository()), "course": short_map()},
        FOLDER / "README.md": {"badges": badges(repository()), "map": course_map()},
    }
    made = {}
    for path, blocks in parts.items():
        text = path.read_text(encoding="utf-8")
        for name, block in blocks.items():
            between = re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.DOTALL)
            if not between.search(text):
                raise Mistake(f"{path} has no lines <!-- {name} --> and <!-- end of {name} --> to write between.")
            text = between.sub(lambda _, block=block: block + "\n", text)
        made[path] = text
    return made


def draw_maps() -> None:
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


# --------------------------------------------------------------------------------------------------------- the commands


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["execute", "check", "stamp", "table", "quick", "rerun"])
    parser.add_argument("names", nargs="*", metavar="NAMES")
    parser.add_argument("--repository", metavar="OWNER/NAME", help="for stamp")
    options = parser.parse_args(arguments)
    try:
        return globals()[f"_{options.command}"](options)
    except Mistake as mistake:
        print(mistake, file=sys.stderr)
        return 1


def _execute(options) -> int:
    for path in find(options.names):
        execute(path)
        for problem in problems(path):
            print(f"{path.name}: {problem}")
    draw_maps()
    return 0


def _check(options) -> int:
    found = [f"{path.name}: {problem}" for path in find(options.names) for problem in problems(path)]
    print("\n".join(found) if found else "fit to be committed")
    return bool(found)


def _stamp(options) -> int:
    stamp(options.repository)
    return 0


def _table(options) -> int:
    rows = []
    for path in find(options.names):
        # a process each: a peak is that of all the process has ever started
        again = [sys.executable, __file__, "rerun", path.stem]
        result = json.loads(subprocess.run(again, check=False, capture_output=True, text=True).stdout)
        rows.append(result | counts(path))
        if result["error"]:
            print(result["error"], file=sys.stderr)
    print(table_text(rows))
    return any(row["error"] for row in rows)


def _quick(options) -> int:
    path = _one(options.names)
    folder = Path.cwd()
    return _report(measured(lambda: run(path, folder / path.name, {"quick": True}, folder), path))


def _rerun(options) -> int:
    path = _one(options.names)
    return _report(measured(lambda: compare(path), path))


def _one(names: list[str]) -> Path:
    if len(names) == 1 and Path(names[0]).is_file():
        return Path(names[0]).resolve()
    paths = find(names)
    if len(paths) != 1:
        raise Mistake(f"Name one notebook, not {len(paths)}.")
    return paths[0]


def _report(result: dict) -> int:
    print(json.dumps(result))
    return bool(result["error"])


if __name__ == "__main__":
    sys.exit(main())
