"""Reads the source of an assignment: a Python file in cells, which becomes a notebook with nbgrader's metadata.

The format is "percent", which editors and Jupytext open as a notebook. Behind `# %%` stands what a cell is for::

    # %% [markdown]                        prose, in comments
    # %%                                   code that students may change
    # %% setup                             the cell that installs the package on Colab, as in all notebooks
    # %% given NAME                        code that they may not change
    # %% solution NAME                     code between ### BEGIN SOLUTION and ### END SOLUTION is theirs to write
    # %% test NAME POINTS                  graded automatically; what is between the marks of hidden tests stays hidden
    # %% [markdown] answer NAME POINTS     graded by a person; what is between the marks of the solution is a model answer
"""

import re
from pathlib import Path

import nbformat

from uniadapter_edu.errors import UniAdapterError

HEADER = re.compile(r"^# %%(?P<prose> \[markdown\])?(?: (?P<kind>\w+)(?: (?P<name>[\w-]+))?(?: (?P<points>[\d.]+))?)?$")
# kind -> what nbgrader calls it
ROLES = {
    "given": {"locked": True},
    "solution": {"solution": True},
    "test": {"grade": True, "locked": True},
    "answer": {"grade": True, "solution": True},
}


def read(path: Path, setup: str, badges: str) -> nbformat.NotebookNode:
    """The notebook that a source stands for, solutions and hidden tests included.

    setup: the code of the `setup` cell. badges: a line that goes below the title. Raises `UniAdapterError` for a header
    that is none of those above.
    """
    cells, body = [], []
    for line in [*path.read_text(encoding="utf-8").splitlines(), "# %%"]:
        if not line.startswith("# %%"):
            body.append(line)
            continue
        if cells:
            cells[-1].source = _text(cells[-1], body)
        cells.append(_cell(line, path, len(cells)))
        body = []
    cells.pop()
    title, _, rest = cells[0].source.partition("\n")
    cells[0].source = f"{title}\n\n{badges}\n{rest}"
    for cell in cells:
        if cell.metadata.pop("setup", False):
            cell.source = setup
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    language = {"name": "python", "pygments_lexer": "ipython3"}
    return nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": language})


def _cell(header: str, path: Path, index: int) -> nbformat.NotebookNode:
    found = HEADER.match(header)
    kind = found and found["kind"]
    if not found or (kind and kind not in (*ROLES, "setup")) or (kind in ROLES and not found["name"]):
        raise UniAdapterError(
            f"{path.name} has a cell that begins with {header!r}.", "uniadapter_edu/grading/source.py lists the kinds."
        )
    cell = (nbformat.v4.new_markdown_cell if found["prose"] else nbformat.v4.new_code_cell)()
    cell.id = f"{path.stem}-{index}"  # not by chance, so that the same source gives the same file
    if kind in ROLES:
        role = {"grade": False, "solution": False, "locked": False, "task": False} | ROLES[kind]
        role |= {"schema_version": 3, "grade_id": f"{path.stem}-{found['name']}", "cell_type": cell.cell_type}
        if role["grade"]:
            role["points"] = float(found["points"])
        cell.metadata["nbgrader"] = role
    elif kind:
        cell.metadata["setup"] = True
    return cell


def _text(cell, lines: list[str]) -> str:
    if cell.cell_type == "markdown":
        lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
    return "\n".join(lines).strip("\n")
