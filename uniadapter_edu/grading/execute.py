"""How a submission is executed: its cells in a sandboxed process, the judging of its answers outside of it.

Preprocessors of nbgrader's autograder. `Restore` puts back what students cannot be trusted with, `ExecuteApart` takes the
place of nbgrader's own `Execute`.
"""

import ast
import contextlib
import io
import os
import queue
import secrets
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import nbformat
import torch
from jupyter_client import KernelManager
from nbgrader import utils
from nbgrader.api import Gradebook
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Integer, Unicode

import uniadapter_edu
from uniadapter_edu._files import data_path
from uniadapter_edu.grading import hidden, sandbox

LONGEST_OUTPUT = 200_000  # characters of one cell's output that are kept
GRACE = 30  # seconds that an interrupted process has to say that it stopped: on a busy machine an error takes its time
KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ")  # nothing that might be a secret


class Stopped(Exception):
    """The submission's process is gone, and why."""


class Overran(Exception):
    """A cell was interrupted, and why; the process goes on."""


# ------------------------------------------------------------------------------------------------------- the process


class _Manager(KernelManager):
    """Starts a kernel by this command, whatever the notebook says of its kernel."""

    def __init__(self, command: list[str], **traits):
        super().__init__(**traits)
        self.command = command

    def format_kernel_cmd(self, extra_arguments=None):
        return self.command


class Process:
    """A sandboxed kernel with a scratch folder, for one submission. Use it as a context.

    memory: bytes of address space. cell_seconds, total_seconds: by the clock. seed: what `hidden.Cases` draws from.
    """

    def __init__(self, memory: int, cell_seconds: float, total_seconds: float, seed: str = "public"):
        self.limits = (memory, cell_seconds, total_seconds)
        self.seed = seed
        self.why_stopped = None

    def __enter__(self):
        memory, self.cell_seconds, total_seconds = self.limits
        self.deadline = time.monotonic() + total_seconds
        self.folder = Path(tempfile.mkdtemp(prefix="submission-")).resolve()
        site = self.folder / "site"
        site.mkdir()
        package = Path(uniadapter_edu.__file__).resolve().parent
        # The package's own folder and not the one it lies in: a checkout holds the sources of the assignments, too.
        (site / package.name).symlink_to(package)
        connection = self.folder / "kernel.json"
        settings = {
            "connection_file": str(connection),
            "readable": [str(package), str(data_path(".").resolve())],
            "writable": [str(self.folder)],
            "memory": memory,
            "seconds": int(2 * total_seconds),
        }
        place = {"ip": str(self.folder / "k"), "connection_file": str(connection)}
        self.manager = _Manager(sandbox.command(settings), transport="ipc", **place)
        environment = {name: os.environ[name] for name in KEPT_ENVIRONMENT if name in os.environ}
        environment |= {"HOME": str(self.folder), "TMPDIR": str(self.folder), "PYTHONPATH": str(site)}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {hidden.SEED: self.seed, "MPLBACKEND": "agg"}
        silent = {
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }  # of the process; cells are heard otherwise
        self.manager.start_kernel(cwd=str(self.folder), env=environment, **silent)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        try:
            self.client.wait_for_ready(timeout=60)
        except RuntimeError as error:
            self.__exit__()
            raise Stopped(f"the process did not start: {error}") from None
        # What everybody needs is imported before the clock of the first cell runs.
        self.cell_seconds, seconds = total_seconds, self.cell_seconds
        self.run("import uniadapter_edu.checks, uniadapter_edu.grading.hidden, safetensors.torch")
        self.cell_seconds = seconds
        return self

    def __exit__(self, *_):
        with contextlib.suppress(Exception):
            self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, code: str) -> list:
        """The outputs of a cell. Raises `Overran` or `Stopped`, whose text is for the feedback, with `.outputs` so far."""
        outputs, request = [], None
        try:
            if self.why_stopped:
                raise Stopped(self.why_stopped)
            request = self.client.execute(code, allow_stdin=False, store_history=False)
            self._receive(request, outputs)
            return outputs
        except (Overran, Stopped) as error:
            error.outputs = outputs
            if isinstance(error, Stopped):
                self._stop(str(error))
            raise

    def _receive(self, request: str, outputs: list) -> None:
        end, size = min(time.monotonic() + self.cell_seconds, self.deadline), 0
        while True:
            if time.monotonic() > end:
                self._interrupt(request)
            message = self._next(end)
            if not message or message["parent_header"].get("msg_id") != request:
                continue
            content, kind = message["content"], message["msg_type"]
            if kind == "status" and content.get("execution_state") == "idle":
                return self._reply(outputs, request)
            if kind in ("stream", "error", "execute_result", "display_data") and size < LONGEST_OUTPUT:
                output = _shown(nbformat.v4.output_from_msg(message))
                size += len(str(output))
                too_long = size >= LONGEST_OUTPUT
                outputs.append(_stream("… the rest of the output was left out.\n") if too_long else output)

    def _next(self, end: float):
        """The next message, None if there was none for a moment."""
        try:
            return self.client.get_iopub_msg(timeout=max(0.01, min(0.5, end - time.monotonic())))
        except queue.Empty:
            if not self.manager.is_alive():
                raise Stopped("the process ended by itself, or because it took too much memory") from None
            return None
        except Exception as error:  # a kernel may send anything
            raise Stopped(f"the process sent what is no message ({type(error).__name__})") from None

    def _reply(self, outputs: list, request: str) -> None:
        """An error that was not shown, because showing errors was switched off, is an error all the same."""
        content = self._wait(request)
        shown = any(output.output_type == "error" for output in outputs)
        if content.get("status") == "error" and not shown:
            outputs.append(_error(str(content.get("ename")), str(content.get("evalue"))))

    def _wait(self, request: str) -> dict:
        for _ in range(100):
            try:
                reply = self.client.get_shell_msg(timeout=GRACE)
            except Exception:
                break
            if reply["parent_header"].get("msg_id") == request:
                return reply["content"]
        raise Stopped("the process does not answer any more")

    def _interrupt(self, request: str) -> None:
        """Time is up: an interruption if that helps, the end of the process if not."""
        if time.monotonic() >= self.deadline:
            raise Stopped("the notebook as a whole took more time than it may")
        limit = f"it took more than the {self.cell_seconds:g} seconds that a cell may"
        self.client.control_channel.send(self.client.session.msg("interrupt_request", content={}))
        try:
            self._wait(request)
        except Stopped:
            raise Stopped(f"{limit}, and could not be interrupted") from None
        raise Overran(limit)

    def _stop(self, why: str) -> None:
        if not self.why_stopped:
            self.why_stopped = why
            self.manager.shutdown_kernel(now=True)


def _shown(output):
    """Without HTML and scripts, which an instructor would open in a browser."""
    if "data" in output:
        output.data = {kind: value for kind, value in output.data.items() if kind in ("text/plain", "image/png")}
    return output


def _stream(text: str):
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def _error(name: str, text: str):
    return nbformat.v4.new_output("error", ename=name, evalue=text, traceback=[f"{name}: {text}"])


# ------------------------------------------------------------------------------------------------------- the judgement


def parts(source: str) -> tuple[str, str, str]:
    """A hidden test's three parts: what both sides know, what the student's side does, what is judged outside."""
    common, _, rest = source.partition(hidden.ASK)
    asked, _, judged = rest.partition(hidden.JUDGE)
    return common, asked, judged


def is_judged(cell) -> bool:
    return cell.cell_type == "code" and utils.is_grade(cell) and hidden.JUDGE in cell.source


def value_of(code: str, namespace: dict):
    """Execute code in a namespace; the value of its last line, if that is an expression."""
    tree = ast.parse(code)
    last = ast.Expression(tree.body.pop().value) if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<hidden test>", "exec"), namespace)
    return eval(compile(last, "<hidden test>", "eval"), namespace) if last else None


def judge(common: str, judged: str, answers, seed: str) -> tuple[float, str]:
    """Points, and what was printed about them. No code of a student's runs here."""
    namespace, printed = {"_answers": answers, "torch": torch}, io.StringIO()
    with utils.setenv(**{hidden.SEED: seed}), contextlib.redirect_stdout(printed):
        points = value_of(common + judged, namespace)
    return points, printed.getvalue()


class ExecuteApart(NbGraderPreprocessor):
    """Runs a notebook in a `Process`; answers to hidden tests are fetched from it and judged here."""

    cell_seconds = Integer(60, help="Seconds by the clock that a cell may take.").tag(config=True)
    total_seconds = Integer(600, help="Seconds by the clock that a notebook may take.").tag(config=True)
    memory = Integer(6_000_000_000, help="Bytes of address space of a process.").tag(config=True)
    seed = Unicode("public", help="What hidden tests are drawn from.").tag(config=True)

    def preprocess(self, nb, resources):
        with Process(self.memory, self.cell_seconds, self.total_seconds, self.seed) as process:
            for cell in nb.cells:
                if cell.cell_type == "code":
                    cell.execution_count = None
                    cell.outputs = self._judged(cell, process) if is_judged(cell) else self._run(cell.source, process)
        return nb, resources

    def _run(self, code: str, process: Process) -> list:
        try:
            return process.run(code)
        except (Overran, Stopped) as error:
            return [*error.outputs, _error(type(error).__name__, f"{error}. What depends on it gets no points.")]

    def _judged(self, cell, process: Process) -> list:
        """What the student sees of a hidden test: an error with its reason, or the points and what they are for."""
        common, asked, judged = parts(cell.source)
        path = process.folder / f"answers-{secrets.token_hex(8)}"
        outputs = self._run(f"{common}\n{asked}\n_hidden.save(_answers, {str(path)!r})", process)
        if errors := [output for output in outputs if output.output_type == "error"]:
            return [_error(errors[0].ename, errors[0].evalue)]  # without the traceback, which shows lines of the test
        try:
            points, printed = judge(common, judged, hidden.load(path), self.seed)
        except ValueError as error:
            return [_error("NoAnswer", str(error))]
        number = nbformat.v4.new_output("execute_result", {"text/plain": str(float(points))}, execution_count=None)
        return [_stream(printed), number]


# --------------------------------------------------------------------------------------------------------- restoring


class Restore(NbGraderPreprocessor):
    """Gives every graded cell the role and the points that the source says, and adds those that were deleted at the end.

    nbgrader restores the text of locked cells by itself, but believes what a submission says of their roles.
    """

    def preprocess(self, nb, resources):
        about = resources["nbgrader"]
        with Gradebook(about["db_url"]) as gradebook:
            source = gradebook.find_notebook(about["notebook"], about["assignment"])
            cells = {cell.name: cell for cell in source.source_cells}
            graded = {cell.name: cell.max_score for cell in source.grade_cells}
            solutions = {cell.name for cell in source.solution_cells}
        roles = {
            name: {
                "schema_version": 3, "grade_id": name, "grade": name in graded, "solution": name in solutions,
                "task": False, "locked": cell.locked, "cell_type": cell.cell_type, "checksum": cell.checksum,
            }
            | ({"points": graded[name]} if name in graded else {})
            for name, cell in cells.items()
        }  # fmt: skip
        present = set()
        for cell in nb.cells:
            claimed = cell.metadata.pop("nbgrader", None)
            name = str(claimed.get("grade_id")) if isinstance(claimed, dict) else None
            if name in roles and name not in present:  # a second one of the same name is an ordinary cell
                cell.metadata.nbgrader = nbformat.from_dict(roles[name])
                present.add(name)
        for name in graded:
            if name not in present:
                make = nbformat.v4.new_code_cell if cells[name].cell_type == "code" else nbformat.v4.new_markdown_cell
                source = cells[name].source
                if name in solutions:  # a written answer that was deleted is not answered
                    source = ""
                nb.cells.append(make(source, metadata={"nbgrader": roles[name]}))
        return nb, resources
