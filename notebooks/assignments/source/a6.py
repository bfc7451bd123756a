# %% [markdown]
# # Assignment 6 · A small ablation study
#
# You leave a part of UniAdapter out, train both versions with several seeds, and say what follows from it, and what does not.
#
# **You will be able to** report results with their spread; decide by a rule that was fixed before whether a difference counts; ask one
# question, answer it with an experiment, and write the answer down honestly.
#
# **Points** 20: exercises 5 + 5, the study 10 (graded by a person; the questions at its end are the reflection). **Time** about 90 minutes, of which a
# few are computing. **Read before** notebooks 06, 07 and 10; `help(ua.UniAdapterConfig)` lists what can be switched.
#
# **Hand in** this notebook, as `a6.ipynb`, executed. Write only where it says so; you may add cells. Checks use other numbers than the hidden tests.
# %% setup
# %%
import math

import torch

import uniadapter_edu as ua
from uniadapter_edu import checks

# %% [markdown]
# ## Exercise 1 · Summarise (5 points: numbers 4, rows left alone 1)
#
# `rows` is a list of dictionaries in any order, one for each run: `{"config": "no ReLU", "seed": 3, "score": 41.5}`. Return a dictionary from each
# config to a tuple `(mean, deviation, n)`: the mean of its scores, their **sample** standard deviation
# $\sqrt{\frac{1}{n-1} \sum_i (x_i - \bar x)^2}$, and how many runs it has. One run has no deviation: give `None`.
# %% solution summarise
def summarise(rows):
    ### BEGIN SOLUTION
    scores = {}
    for row in rows:
        scores.setdefault(row["config"], []).append(row["score"])
    summary = {}
    for config, values in scores.items():
        n, mean = len(values), sum(values) / len(values)
        deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1)) if n > 1 else None
        summary[config] = (mean, deviation, n)
    return summary
    ### END SOLUTION


# %%
checks.a6.summarise(summarise)
# %% test summarise-test 5
# Exercise 1 is graded here: numbers 4 points, rows left alone 1.
### BEGIN HIDDEN TESTS
import statistics as _statistics

from uniadapter_edu.grading import hidden as _hidden

_draw, _cases = _hidden.Cases("summarise"), []
for _ in range(4):
    _names = [f"{_draw.choice('r', 'no ', 'share=')}{i}" for i in range(_draw.size(2, 4))]
    _runs = [(name, seed) for name in _names for seed in range(_draw.size(1, 5))] + [("alone", 7)]
    _rows = [{"config": c, "seed": s * 3 + 1, "score": _draw.number(20, 60)} for c, s in _runs]
    _cases.append(_draw.case(sorted(_rows, key=lambda row: row["score"])))


def _observe(summarise, case):
    (rows,) = case.arguments
    before = [dict(row) for row in rows]
    summary = summarise(rows)
    plain = {k: [None if x is None else float(x) for x in summary[k]] for k in sorted(summary)}
    return {"numbers": plain, "rows": rows == before}


# ask:
_answers = _hidden.ask(summarise, _cases, _observe)
# judge:
def _reference(rows):
    found = {c: [row["score"] for row in rows if row["config"] == c] for c in {row["config"] for row in rows}}
    spread = {c: _statistics.stdev(x) if len(x) > 1 else None for c, x in found.items()}
    return {c: (_statistics.mean(x), spread[c], len(x)) for c, x in found.items()}


_hidden.grade(_answers, _hidden.ask(_reference, _cases, _observe), numbers=4, rows=1)
### END HIDDEN TESTS
# %% [markdown]
# ## Exercise 2 · Compare (5 points)
#
# A rule that is fixed before the runs are made. Of two configs `a` and `b`, take the seeds that **both** have, and for each seed the difference
# $d = \mathrm{score}_a - \mathrm{score}_b$. With $n$ differences, mean $\bar d$ and sample standard deviation $\sigma_d$:
#
# $$\mathrm{better} \ \text{ if }\ \bar d > 2\, \frac{\sigma_d}{\sqrt n} \qquad\qquad
# \mathrm{worse} \ \text{ if }\ \bar d < -2\, \frac{\sigma_d}{\sqrt n}$$
#
# and in all other cases `"cannot tell"`; with fewer than three differences always `"cannot tell"`. Return one of the three strings, for `a`.
# Nothing depends on exercise 1. (If all differences are equal and not zero, $\sigma_d = 0$, and the rule says better or worse.)
# %% solution compare
def compare(rows, a, b):
    ### BEGIN SOLUTION
    by_seed = {name: {row["seed"]: row["score"] for row in rows if row["config"] == name} for name in (a, b)}
    differences = [by_seed[a][seed] - by_seed[b][seed] for seed in by_seed[a] if seed in by_seed[b]]
    n = len(differences)
    if n < 3:
        return "cannot tell"
    mean = sum(differences) / n
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1)) / math.sqrt(n)
    if abs(mean) <= 2 * error:
        return "cannot tell"
    return "better" if mean > 0 else "worse"
    ### END SOLUTION


# %%
checks.a6.compare(compare)
# %% test compare-test 5
# Exercise 2 is graded here: 5 points.
### BEGIN HIDDEN TESTS
import statistics as _statistics

from uniadapter_edu.grading import hidden as _hidden

_draw, _cases = _hidden.Cases("compare"), []
for _want in (-3, -1.2, -1.05, -0.95, -0.7, 0, 0.7, 0.95, 1.05, 1.2, 3):  # mean difference, in two standard errors
    _n = _draw.size(3, 7)
    _noise = [_draw.number(-1, 1) for _ in range(_n)]
    _unit = 2 * _statistics.stdev(_noise) / _n**0.5
    _shift = _want * _unit - _statistics.mean(_noise)
    _seeds = [11 * i + _draw.size(0, 9) for i in range(_n)]
    _base = [_draw.number(20, 80) for _ in _seeds]  # seeds differ more than configs
    _rows = [{"config": "without", "seed": s, "score": x} for s, x in zip(_seeds, _base)]
    _rows += [{"config": "with", "seed": s, "score": x + d + _shift} for s, x, d in zip(_seeds, _base, _noise)][::-1]
    _rows += [{"config": "with", "seed": 999, "score": 1e3}, {"config": "other", "seed": _seeds[0], "score": -1e3}]
    _cases.append(_draw.case(_rows, "with", "without"))
_two = [{"config": c, "seed": s, "score": x} for c, x in (("p", 50.0), ("q", 10.0)) for s in (1, 2)]
_cases += [_draw.case(_two, "p", "q"), _draw.case([*_two, {"config": "p", "seed": 3, "score": 50.0}], "p", "q")]
_three = [{"config": c, "seed": s, "score": x + s} for c, x in (("p", 48.0), ("q", 16.0)) for s in (1, 2, 3)]
_cases += [_draw.case(_three, "p", "q"), _draw.case(_three, "q", "p"), _draw.case(_three, "p", "p")]
# ask:
_answers = _hidden.ask(compare, _cases, lambda f, case: {"values": case.call(f)})
# judge:
def _reference(rows, a, b):
    of = {(row["config"], row["seed"]): row["score"] for row in rows}
    d = [score - of[b, seed] for (config, seed), score in of.items() if config == a and (b, seed) in of]
    if len(d) < 3:
        return "cannot tell"
    mean, error = _statistics.mean(d), _statistics.stdev(d) / len(d) ** 0.5
    return "better" if mean > 2 * error else "worse" if mean < -2 * error else "cannot tell"


_hidden.grade(_answers, _hidden.ask(_reference, _cases, lambda f, case: {"values": case.call(f)}), values=5)
### END HIDDEN TESTS
# %% [markdown]
# ## The study (10 points)
#
# Choose **one** question, for example: does sharing the down-projection cost anything at an equal budget? Does the query residual help? Does the
# scale matter more than the width? Below is what one run takes: a frozen BLIP with your adapters, a few training steps on pictures of
# the new style, and the score (R@1 of text to image, in percent, on 100 other pictures). Change `CONFIGS`; use at least three seeds. A run takes
# about ten seconds on one core, and a study of more than a minute may be cut short when your notebook is run again for grading: put every number
# that you report into your text. Nothing here is graded automatically.
# %%
CONFIGS = {
    "r=32": ua.UniAdapterConfig(bottleneck=32, scale=4.0),
    # what you compare it with goes here
}
SEEDS, STEPS = (0, 1, 2), 30
# %% given study
def run(config, seed, steps):
    """R@1, in percent, after some steps of training; seconds. The seed draws the start and the batches."""
    torch.manual_seed(seed)
    model, processor = ua.load_backbone(), ua.load_processor()
    ua.insert_adapters(model, config)
    how = ua.TrainConfig(steps=steps, batch_size=16, learning_rate=3e-3, seed=seed, precision="fp32")
    train_scenes = ua.emoji.load_split("target", "train", 300)
    ua.train(model, ua.RetrievalTask(model, processor), train_scenes, how, progress=False)
    test_scenes = ua.emoji.load_split("target", "test", 100)
    return 100 * ua.evaluate_retrieval(model, processor, test_scenes, top_k=4, progress=False).t2i_r1


def study(configs, seeds, steps):
    rows = [
        {"config": name, "seed": seed, "score": run(config, seed, steps)}
        for name, config in configs.items()
        for seed in seeds
    ]
    for name, config in configs.items():
        model = ua.insert_adapters(ua.load_backbone(), config)
        scores = [round(row["score"], 1) for row in rows if row["config"] == name]
        print(f"{name:20} {ua.trainable_parameters(model).trainable:>8,} trainable parameters   scores {scores}")
    return rows


# %%
rows = study(CONFIGS, SEEDS, STEPS)
# %%
# Your table or figure, with `summarise` and `compare`:

# %% [markdown]
# ### Report (10 points, graded by a person)
#
# In 200 to 300 words: (1) **the question**, and what you expected before you ran anything; (2) **the design**: what differs between the configs and
# what is kept equal (parameters? steps? seeds?); (3) **the result**, in numbers with their spread, and what your rule says; (4) **the conclusion**:
# what follows, what does not, and which one further run would change your mind.
#
# **Rubric** (1) one question that the runs can answer, and a prediction: 2. (2) one thing differs, the budgets are given: 2. (3) mean, spread and n of
# each config, the verdict of the rule, nothing left out: 3. (4) the conclusion is no wider than the evidence; one threat to it is named: 3.
# %% [markdown] answer report 10
# ### BEGIN SOLUTION
# A model report is not given: any honest study that meets the rubric is right. "Cannot tell" is a result.
# ### END SOLUTION
