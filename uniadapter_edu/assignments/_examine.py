"""How the checks of the assignments look at a function: its values, what it leaves alone, its dtypes, its gradients."""

import copy
import inspect
from collections.abc import Callable

import torch

from uniadapter_edu._answers import is_open
from uniadapter_edu._answers import right as say_right
from uniadapter_edu.grading.hidden import Case, probe, tensors

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def examine(function: Callable, arguments: tuple, right: Callable, mistakes: dict[str, Callable], praise: str) -> None:
    """Compare a student's function with ``right`` for these arguments, of which none may be changed by it.

    mistakes: what is wrong, as a sentence -> a function that does just that. A result like one of theirs is told so.
    Raises AssertionError. Prints ``praise``, or that the answer is still open.
    """
    given = function(*copy.deepcopy(arguments))
    if is_open(given):
        return
    _value(given, arguments, right, mistakes)
    _left_alone(function, arguments)
    _dtype(function, arguments)
    _gradients(function, arguments, right)
    say_right(praise)


def _value(given, arguments: tuple, right: Callable, mistakes: dict[str, Callable]) -> None:
    expected = right(*copy.deepcopy(arguments))
    assert isinstance(given, torch.Tensor), f"it returns {type(given).__name__}, expected a tensor."
    if _same(given, expected):
        return
    why = next((why for why, wrong in mistakes.items() if _same(given, wrong(*copy.deepcopy(arguments)))), None)
    shapes = f"its shape is {tuple(given.shape)}, expected {tuple(expected.shape)}"
    raise AssertionError(f"{why or (shapes if given.shape != expected.shape else 'these are other numbers')}.")


def _left_alone(function: Callable, arguments: tuple) -> None:
    kept = probe(function, Case(copy.deepcopy(arguments)))["inputs"]
    assert kept["unchanged"], "an input was changed in place: whoever else uses that tensor would be surprised."
    assert kept["no memory shared"], "the result shares its memory with an input: changing one would change the other."


def _dtype(function: Callable, arguments: tuple) -> None:
    double = copy.deepcopy(arguments)
    double = tuple(a.double() if _is_float(a) else a for a in double)
    result = function(*double)
    assert result.dtype == torch.float64, f"for float64 inputs it returns {result.dtype}: some dtype is fixed in it."


def _gradients(function: Callable, arguments: tuple, right: Callable) -> None:
    given, expected = (probe(f, Case(copy.deepcopy(arguments)))["gradients"] for f in (function, right))
    assert isinstance(given, list), f"with inputs that require a gradient it fails: {given}"
    for name, mine, theirs in zip(_names(arguments, right), given, expected):
        wanted, found = bool(theirs.abs().sum() > 0), bool(mine.abs().sum() > 0)
        assert found or not wanted, (
            f"no gradient reaches {name}: something on the way is detached or not differentiable."
        )
        assert wanted or not found, f"a gradient flows into {name}, and none should: detach it."
        assert _same(mine, theirs), f"the gradient of {name} is wrong, though the values are right."


def _names(arguments: tuple, right: Callable) -> list[str]:
    """What to call each tensor that `probe` gives a gradient of: tensors first, then the parameters of modules."""
    named = list(zip(inspect.signature(right).parameters, arguments))
    plain = [f"`{name}`" for name, a in named if _is_float(a) and isinstance(a, torch.Tensor)]
    modules = [(name, a) for name, a in named if isinstance(a, torch.nn.Module)]
    names = plain + [f"`{name}.{part}`" for name, m in modules for part, _ in m.named_parameters()]
    floats = [t for t in tensors(Case(arguments)) if t.is_floating_point()]
    return names if len(names) == len(floats) else [f"input {i}" for i in range(len(floats))]


def _is_float(argument) -> bool:
    return isinstance(argument, torch.nn.Module) or (
        isinstance(argument, torch.Tensor) and argument.is_floating_point()
    )


def _same(a, b) -> bool:
    return isinstance(a, torch.Tensor) and a.shape == b.shape and torch.allclose(a.to(b.dtype), b, **CLOSE)


def numbers(*shape: int) -> torch.Tensor:
    """Fixed numbers of both signs, no two alike."""
    n = torch.Size(shape).numel()
    return (torch.arange(n, dtype=torch.float) * 0.7 + 0.3).sin().view(shape)


def filled(module: torch.nn.Module, shift: float = 0.0) -> torch.nn.Module:
    """The module with fixed numbers as its parameters, other ones for another ``shift``."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(numbers(p.numel() + 3 * i + 1)[3 * i + 1 :].view(p.shape) + shift * (1 + 0.1 * i))
    return module
