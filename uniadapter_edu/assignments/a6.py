"""Assignment 6, a small ablation study."""

import math
from collections.abc import Callable

from uniadapter_edu._answers import is_open, right

ROWS = [
    {"config": config, "seed": seed, "score": score}
    for config, scores in {"a": [40.0, 46.0, 43.0], "b": [30.0, 31.0], "c": [20.0]}.items()
    for seed, score in enumerate(scores)
]


def summarise(function: Callable) -> None:
    """``function(rows)``: config -> (mean, sample standard deviation or None, number of seeds)."""
    rows = [ROWS[i] for i in (3, 0, 5, 1, 4, 2)]  # in no order
    before = [dict(row) for row in rows]
    given = function(rows)
    if is_open(given):
        return
    assert isinstance(given, dict), f"it returns {type(given).__name__}, expected a dictionary."
    assert set(given) == {"a", "b", "c"}, f"its keys are {sorted(map(str, given))}, expected the configs a, b and c."
    assert all(len(given[k]) == 3 for k in given), "each config has three things: mean, deviation, number of seeds."
    for config, (mean, deviation, n) in {"a": (43.0, 3.0, 3), "b": (30.5, 0.5**0.5, 2), "c": (20.0, None, 1)}.items():
        m, d, count = given[config]
        assert count == n, f"{config} has {n} seeds, and not {count}."
        averages = {29.83: "the mean of all rows", 35.0: "the mean of all rows", 129.0: "the sum", 46.0: "the largest"}
        why = averages.get(round(float(m), 2), "another number")
        assert math.isclose(m, mean), f"the mean of {config} is {mean}; {m:.4g} is {why}."
        if deviation is None:
            assert d is None, f"one seed has no spread: expected None, not {d}."
            continue
        wrong = {
            deviation * math.sqrt((n - 1) / n): "it is divided by n; a sample's is divided by n - 1",
            deviation**2: "that is the variance: its root is missing",
            deviation / math.sqrt(n): "that is the standard error; expected the deviation of the seeds",
            deviation
            * math.sqrt((n - 1) / n)
            / math.sqrt(n): "that is a standard error; expected the deviation of the seeds",
        }
        assert d is not None, f"the deviation of {config} is missing."
        why = next((w for value, w in wrong.items() if math.isclose(d, value)), f"expected {deviation:.4g}")
        assert math.isclose(d, deviation), f"the deviation of {config} is {d:.4g}: {why}."
    assert [dict(row) for row in rows] == before, "the rows were changed."
    right("Mean, spread, and of how many.")


def compare(function: Callable) -> None:
    """``function(rows, a, b)``: "better", "worse" or "cannot tell", from the differences of a and b at equal seeds."""

    def rows(a: dict, b: dict) -> list[dict]:
        both = [
            {"config": c, "seed": s, "score": float(x)} for c, scores in (("a", a), ("b", b)) for s, x in scores.items()
        ]
        return both[::-1]

    def check(a: dict, b: dict, expected: str, why: str) -> None:
        given = function(rows(a, b), "a", "b")
        assert given == expected, f'{given!r} for a = {a}, b = {b}, by seed: expected "{expected}". {why}.'

    if is_open(function(rows({0: 1, 1: 2, 2: 3}, {0: 1, 1: 2, 2: 4}), "a", "b")):
        return
    spread, less = {0: 10, 1: 50, 2: 90}, {0: 8, 1: 47, 2: 88}
    check({0: 5, 1: 6, 2: 7}, {0: 5, 1: 6, 2: 7}, "cannot tell", "There is no difference at all")
    check(spread, less, "better", "The seeds differ much and a is above b with each: take differences seed by seed")
    check(less, spread, "worse", "It has to see in which direction the difference goes")
    check({0: 9, 1: 20}, {0: 1, 1: 12}, "cannot tell", "Two seeds are too few, whatever they say")
    check(
        {0: 13, 1: 10, 2: 10, 3: 10},
        {0: 10, 1: 9, 2: 10, 3: 10},
        "cannot tell",
        "The mean must exceed two standard errors",
    )
    noisy = {0: 11, 1: 14, 2: 11, 3: 14}, {0: 10, 1: 10, 2: 10, 3: 10}
    check(*noisy, "better", "The standard error is the deviation divided by the root of the number of seeds")
    check(
        {0: 12, 1: 13, 2: 12, 7: 0}, {0: 10, 1: 10, 2: 10, 8: 99}, "better", "Only seeds that both have can be compared"
    )
    three = {0: 11, 1: 12.5, 2: 14}, {0: 10, 1: 10, 2: 10}
    check(*three, "better", "The mean is 2.5, two standard errors are 1.73: divide by n - 1 and take the root of n")
    close = {0: 10.5, 1: 12, 2: 13.5}, {0: 10, 1: 10.25, 2: 10.5}
    check(*close, "better", "The mean is 1.75, two standard errors are 1.44")
    check(
        {0: 10.2, 1: 12.1, 2: 13.3}, {0: 10, 1: 10, 2: 10}, "better", "The mean is 1.87, two standard errors are 1.81"
    )
    check(
        {0: 10, 1: 12, 2: 13.3}, {0: 10, 1: 10, 2: 10}, "cannot tell", "The mean is 1.77, two standard errors are 1.93"
    )
    right("A difference counts when it stands out of its own spread.")
