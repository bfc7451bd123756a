"""What the hidden tests of the assignments are written with: seeded cases, what a function does with them, and points.

A hidden test is one cell in three parts, between nbgrader's `### BEGIN HIDDEN TESTS` and `### END HIDDEN TESTS`::

    from uniadapter_edu.grading import hidden as _hidden
    _draw = _hidden.Cases("a1-bottleneck")                    # the same cases on both sides, from the course's seed
    _cases = [_draw.case(_draw.tensor(2, 3)) for _ in range(3)]
    # ask:
    _answers = _hidden.ask(bottleneck, _cases)                # what the student's function does, as plain data
    # judge:
    _right = _hidden.ask(lambda h: h.relu(), _cases)
    _hidden.grade(_answers, _right, values=3, gradients=1)    # the last line: prints why, and is the number of points

nbgrader runs such a cell as it stands. The grading command does more (`uniadapter_edu.grading.execute`): what stands
between the two marks runs in the student's process, what stands after `# judge:` runs outside of it, and nothing but
tensors and JSON goes from one to the other. So no code of a student's is near where points are given.
"""

import contextlib
import copy
import itertools
import json
import math
import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

SEED = "UNIADAPTER_EDU_GRADING_SEED"  # the environment variable that holds the course's seed
ASK, JUDGE = "# ask:", "# judge:"
# Two right ways of computing differ by rounding; by less than this, relative to the largest number of a tensor.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 2e-4}
LONGEST_ERROR = 300  # characters of a student's error that the feedback repeats
LARGEST_ANSWER = 64e6  # bytes

# ------------------------------------------------------------------------------------------------------------ the cases


@dataclass
class Case:
    """What a function is called with. Made anew for each call, because a function might change it."""

    arguments: tuple
    named: dict = field(default_factory=dict)

    def call(self, function: Callable):
        return function(*self.arguments, **self.named)


class Cases:
    """Draws shapes, numbers and small conventions for one exercise: the same ones for the same seed and name."""

    def __init__(self, name: str):
        seed = f"{os.environ.get(SEED, 'public')}/{name}"
        self._choices, self._numbers = random.Random(seed), torch.Generator()
        self._numbers.manual_seed(self._choices.getrandbits(60))
        self._dtypes = itertools.cycle(self._choices.sample([torch.float32, torch.float64], 2))

    def case(self, *arguments, **named) -> Case:
        return Case(arguments, named)

    def size(self, low: int, high: int) -> int:
        return self._choices.randint(low, high)

    def choice(self, *options):
        return self._choices.choice(options)

    def number(self, low: float, high: float) -> float:
        return self._choices.uniform(low, high)

    def sizes(self, n: int, low: int, high: int) -> list[int]:
        """``n`` different sizes, so that no two axes can be taken for one another."""
        return self._choices.sample(range(low, high + 1), n)

    def dtype(self) -> torch.dtype:
        """float32 and float64 in turn, beginning with either: no exercise sees only one of them."""
        return next(self._dtypes)

    def tensor(self, *shape: int, dtype=torch.float32, strided: bool | None = None) -> torch.Tensor:
        """Normal numbers. ``strided``: not contiguous in memory, by chance unless said; the numbers are the same."""
        t = torch.randn(*shape, generator=self._numbers, dtype=torch.float64).to(dtype)
        if self.choice(True, False) if strided is None else strided:
            t = torch.stack([t, t + 1], dim=-1)[..., 0]
        return t

    def linear(self, fan_in: int, fan_out: int, dtype=torch.float32, bias: bool = True) -> nn.Linear:
        return self._fill(nn.Linear(fan_in, fan_out, bias=bias, dtype=dtype))

    def norm(self, width: int, dtype=torch.float32) -> nn.LayerNorm:
        return self._fill(nn.LayerNorm(width, eps=self.choice(1e-5, 1e-3, 1e-2), dtype=dtype))

    def _fill(self, module: nn.Module) -> nn.Module:
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(torch.randn(p.shape, generator=self._numbers, dtype=torch.float64))
        return module


# ---------------------------------------------------------------------------------------------------------- the answers


def ask(function: Callable, cases: list[Case], observe: Callable | None = None, forbidden: tuple = ()) -> list[dict]:
    """What ``function`` does with each case: aspect -> plain data (tensors, numbers, strings, lists, dictionaries).

    observe: ``observe(function, case)``, `probe` by default. forbidden: functions of the package that compute what the
    exercise asks for; calling one of them is an error meanwhile.
    """
    answers = []
    with _forbidding(forbidden):
        for case in cases:
            try:
                answers.append((observe or probe)(function, copy.deepcopy(case)))
            except Exception as error:
                answers.append({"error": _short(error)})
    return answers


def probe(function: Callable, case: Case) -> dict:
    """Values, what happened to the inputs, and gradients of a function of tensors and modules.

    The gradients have a run of their own: what fails only there costs no more than they are worth.
    """
    inputs, before = tensors(case), [t.detach().clone() for t in tensors(case)]
    again = copy.deepcopy(case)
    result = case.call(function)
    answer = {
        "values": _plain(result),
        "inputs": {
            "unchanged": all(torch.equal(a.detach(), b) for a, b in zip(inputs, before)),
            "no memory shared": not _share_memory(result, inputs),
        },
    }
    try:
        answer["gradients"] = _gradients(function, again)
    except Exception as error:
        answer["gradients"] = _short(error)
    return answer


def _gradients(function: Callable, case: Case) -> list:
    """d(sum of all outputs, each weighed differently) / d(each floating-point input and parameter); zeros for none."""
    inputs = [t.requires_grad_() for t in tensors(case) if t.is_floating_point()]
    outputs = [t for t in _flat(case.call(function)) if isinstance(t, torch.Tensor) and t.requires_grad]
    if not outputs:
        return [torch.zeros_like(t) for t in inputs]
    total = sum((t * torch.linspace(1, 2, t.numel(), dtype=t.dtype).view(t.shape)).sum() for t in outputs)
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found)]


def tensors(case: Case) -> list[torch.Tensor]:
    found = _flat([*case.arguments, *case.named.values()])
    parameters = [p for m in found if isinstance(m, nn.Module) for p in m.parameters()]
    return [t for t in found if isinstance(t, torch.Tensor)] + parameters


def _flat(value) -> list:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in _flat(part)]
    return [value]


def _share_memory(result, inputs: list[torch.Tensor]) -> bool:
    places = {t.untyped_storage().data_ptr() for t in inputs if t.numel()}
    return any(isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() in places for t in _flat(result))


def _plain(value):
    """Only data: no gradients, no modules, no classes of the student's."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    if hasattr(value, "item"):  # a number of NumPy's
        return value.item()
    return "no answer yet" if value is ... else f"an object of the class {type(value).__name__}"


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:LONGEST_ERROR]


@contextlib.contextmanager
def _forbidding(functions: tuple):
    """Inside, calling these fails, under whatever name they were imported."""

    def refuse(*args, **kwargs):
        raise RuntimeError("this is the package's own solution; the exercise asks for yours")

    codes = [f.__code__ for f in functions]
    try:
        for f in functions:
            f.__code__ = refuse.__code__
        yield
    finally:
        for f, code in zip(functions, codes):
            f.__code__ = code


# ----------------------------------------------------------------------------------------------------------- the points


def grade(answers: list[dict], right: list[dict], **points: float) -> float:
    """The points of an exercise, one aspect after the other, each all or nothing; prints what was lost and why.

    The first aspect named is what the others stand on: where it is wrong, they give nothing.
    """
    total, first = 0, next(iter(points))
    for aspect, worth in points.items():
        why = _difference(answers, right, aspect) or (aspect != first and _difference(answers, right, first))
        total += 0 if why else worth
        print(f"{aspect}: {'right' if not why else why} ({0 if why else worth:g} of {worth:g})")
    return total


def _difference(answers: list[dict], right: list[dict], aspect: str) -> str | None:
    if not isinstance(answers, list) or len(answers) != len(right):
        return "there is no answer to every case"
    for i, (answer, expected) in enumerate(zip(answers, right), 1):
        if "error" in expected:
            raise RuntimeError(f"the reference solution fails: {expected['error']}")
        if "error" in answer:
            return f"case {i} of {len(right)} ends in {answer['error']}"
        if why := _differs(answer.get(aspect), expected[aspect]):
            return f"case {i} of {len(right)}: {why}"
    return None


def _differs(given, right) -> str | None:
    """Why two answers are not the same, None if they are."""
    if given == "no answer yet":
        return "not answered"
    if isinstance(right, torch.Tensor):
        return _tensors_differ(given, right)
    if isinstance(right, dict) and isinstance(given, dict) and given.keys() == right.keys():
        return next((f"{k}: {why}" for k in right if (why := _differs(given[k], right[k]))), None)
    if isinstance(right, list) and isinstance(given, list) and len(given) == len(right):
        return next(
            (f"part {i}: {why}" for i, pair in enumerate(zip(given, right), 1) if (why := _differs(*pair))), None
        )
    if isinstance(right, float) and type(given) in (int, float):
        return None if math.isclose(given, right, rel_tol=1e-6, abs_tol=1e-9) else "another number was expected"
    if isinstance(given, torch.Tensor) and given.numel() == 1 and type(right) in (int, float):
        return _differs(given.item(), float(right))
    if isinstance(given, str) and isinstance(right, list):
        return given  # an error instead of the list
    if type(given) is not type(right):
        return f"expected {_kind(right)}, not {_kind(given)}"
    if isinstance(right, (dict, list)):
        return "other or more parts than expected"
    return None if given == right else "this does not hold" if right is True else "another answer was expected"


def _tensors_differ(given, right: torch.Tensor) -> str | None:
    if not isinstance(given, torch.Tensor):
        return f"expected a tensor, not {_kind(given)}"
    if given.shape != right.shape:
        return f"the shape is {tuple(given.shape)}, expected {tuple(right.shape)}"
    if given.dtype != right.dtype:
        return f"the dtype is {given.dtype}, expected {right.dtype}"
    if not right.is_floating_point():
        return None if torch.equal(given, right) else "other numbers were expected"
    size = max(1.0, right.abs().max().item()) if right.numel() else 1.0
    # Not `<=` alone: NaN is never close.
    error = (given - right).abs().max().item() if right.numel() else 0.0
    return None if error <= TOLERANCE[right.dtype] * size else f"other numbers were expected ({right.dtype})"


def _kind(value) -> str:
    return "a tensor" if isinstance(value, torch.Tensor) else f"{type(value).__name__}"


# -------------------------------------------------------------------------------------------- from process to process


def save(answers, path: str | Path) -> None:
    """Answers as JSON in ``path``, their tensors beside it as safetensors. Never pickle: a student's process writes it."""
    from safetensors.torch import save_file

    found = {}

    def put(value):
        if isinstance(value, torch.Tensor):
            found[str(len(found))] = value.detach().contiguous().clone()
            return {"tensor": str(len(found) - 1)}
        if isinstance(value, dict):
            return {"parts": {str(k): put(v) for k, v in value.items()}}
        return [put(v) for v in value] if isinstance(value, (list, tuple)) else value

    tree = put(answers)
    save_file(found, f"{path}.safetensors")
    Path(path).write_text(json.dumps(tree))


def load(path: str | Path):
    """The inverse of `save`. The files may be anything: raises ValueError if they are no answers, or too large."""
    from safetensors.torch import load as tensors_of

    try:
        tree, found = json.loads(_read(Path(path))), tensors_of(_read(Path(f"{path}.safetensors")))
        return _get(tree, found)
    except Exception as error:
        raise ValueError(f"what the submission's process handed over is no answer ({type(error).__name__})") from None


def _read(path: Path) -> bytes:
    # A link could lead anywhere, and a pipe would never end.
    file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(file, "rb") as stream:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST_ANSWER:
            raise ValueError("not a plain file, or too large")
        return stream.read()


def _get(tree, found: dict):
    if isinstance(tree, list):
        return [_get(part, found) for part in tree]
    if isinstance(tree, dict) and set(tree) == {"tensor"}:
        return found[tree["tensor"]]
    if isinstance(tree, dict):
        return {key: _get(part, found) for key, part in tree["parts"].items()}
    return tree
