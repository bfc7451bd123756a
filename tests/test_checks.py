"""Exercises: each check accepts the right answer, leaves dots open, and names the mistake in a wrong one."""

import pytest
from torch import nn

from uniadapter_edu import checks


def zero_up(adapter):
    nn.init.zeros_(adapter.up["vision"].weight)
    nn.init.zeros_(adapter.up["vision"].bias)


def zero_up_weight(adapter):
    nn.init.zeros_(adapter.up["vision"].weight)


def zero_down(adapter):
    nn.init.zeros_(adapter.down.weight)
    nn.init.zeros_(adapter.down.bias)


def zero_all(adapter):
    zero_up(adapter)
    zero_down(adapter)


RIGHT = [
    (checks.bottleneck_count, (lambda D, r: 2 * D * r + r + 3 * D,)),
    (checks.identity_start, (zero_up,)),
    (checks.same_first_step, (0.12, 0.1, 3e-3, 4.0)),
]
OPEN = [
    (checks.bottleneck_count, (lambda D, r: ...,)),
    (checks.identity_start, (lambda adapter: ...,)),
    (checks.same_first_step, (..., 0.1, 3e-3, 4.0)),
]
WRONG = [
    (checks.bottleneck_count, (lambda D, r: 2 * D * r,), "two matrices alone"),
    (checks.bottleneck_count, (lambda D, r: 2 * D * r + r + D,), "LayerNorm has a weight and a bias"),
    (checks.bottleneck_count, (lambda D, r: 2 * D * r + 3 * D,), "bias of r numbers"),
    (checks.bottleneck_count, (lambda D, r: 2 * D * r + r + 2 * D,), "bias of D numbers"),
    (checks.bottleneck_count, (lambda D, r: 2 * D * r + 2 * D,), "both linear maps have a bias"),
    (checks.bottleneck_count, (lambda D, r: D * D + D,), "one full D x D map"),
    (checks.bottleneck_count, (lambda D, r: 5,), "expected 1707"),
    (checks.identity_start, (lambda adapter: None,), "weight of the up-projection is not zero"),
    (checks.identity_start, (zero_up_weight,), "bias of the up-projection"),
    (checks.identity_start, (zero_down,), "weight of the up-projection is not zero"),
    (checks.identity_start, (zero_all,), "no gradient"),
    (checks.same_first_step, (3e-3, 0.1, 3e-3, 4.0), "too small"),
    (checks.same_first_step, (0.5, 0.1, 3e-3, 4.0), "too large"),
]


@pytest.mark.parametrize(("check", "answer"), RIGHT)
def test_the_right_answer_is_accepted(check, answer, capsys):
    check(*answer)
    assert capsys.readouterr().out.startswith("Right.")


@pytest.mark.parametrize(("check", "answer"), OPEN)
def test_dots_are_left_open(check, answer, capsys):
    check(*answer)
    assert capsys.readouterr().out.startswith("Not answered yet")


@pytest.mark.parametrize(("check", "answer", "mistake"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(check, answer, mistake):
    with pytest.raises(AssertionError, match=mistake):
        check(*answer)
