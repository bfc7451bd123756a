# %% [markdown]
# # Assignment 3 · Weight sharing
#
# You build branches that share weights, compute by hand what a shared weight learns, and find out what sharing buys.
#
# **You will be able to** share a weight so that it stays shared; derive the gradient of a shared weight; compare designs at equal budgets.
#
# **Points** 20: exercises 6 + 5 + 5, reflection 4. **Time** about 60 minutes. **Read before** notebook 06.
#
# **Hand in** this notebook, as `a3.ipynb`. Write only where it says so; you may add cells. Checks use other numbers than the hidden tests.
# The functions have to be yours: those of `uniadapter_edu` that do the same are switched off while your work is graded.
# %% setup
# %%
import torch
from torch import nn

from uniadapter_edu import checks

# %% [markdown]
# ## Exercise 1 · Build (6 points: shared 4, registered 2)
#
# `build(D, r, share)` returns an `nn.ModuleDict` with the keys `"vision"`, `"text"` and `"cross"`. Each of the three is an `nn.ModuleDict` with
# `"down"`, a linear map from $D$ to $r$ numbers, and `"up"`, one from $r$ to $D$; both have a bias, and all parameters train. (No
# LayerNorm and no scale here.)
#
# `share` is `"none"`, `"down"`, `"up"` or `"all"` (both). What is shared is **one parameter object** for all three branches, weight
# *and* bias: training one trains all. What is not shared starts with numbers of its own. Every parameter must be *registered*, which means
# that an optimizer finds it in `parameters()` of what you return: each object once, however many branches use it.
# %% solution build
def build(D, r, share):
    ### BEGIN SOLUTION
    down, up = nn.Linear(D, r), nn.Linear(r, D)
    branches = nn.ModuleDict()
    for name in ("vision", "text", "cross"):
        branches[name] = nn.ModuleDict(
            {
                "down": down if share in ("down", "all") else nn.Linear(D, r),
                "up": up if share in ("up", "all") else nn.Linear(r, D),
            }
        )
    return branches
    ### END SOLUTION


# %%
checks.a3.build(build)
# %% test build-test 6
# Exercise 1 is graded here: shared 4 points, registered 2.
### BEGIN HIDDEN TESTS
from torch import nn

from uniadapter_edu.grading import hidden as _hidden

_draw = _hidden.Cases("build")
_cases = [_draw.case(*_draw.sizes(2, 2, 12), share) for share in ("down", "none", "all", "up")]


def _observe(build, case):
    branches = case.call(build)
    shared, names = {}, ("vision", "text", "cross")
    for part in ("down", "up"):
        for kind in ("weight", "bias"):
            found = [getattr(branches[name][part], kind) for name in names]
            same = [found[i] is found[j] for i in range(3) for j in range(i)]
            equal = [kind == "weight" and bool((found[i] == found[j]).all()) for i in range(3) for j in range(i)]
            shared[f"{part}.{kind}"] = [same, equal, [list(p.shape) for p in found]]
    trains = isinstance(branches, nn.Module) and all(p.requires_grad for p in branches.parameters())
    registered = sum(p.numel() for p in branches.parameters()) if trains else 0
    return {"shared": shared, "registered": [trains, registered]}


# ask:
_answers = _hidden.ask(build, _cases, _observe)
# judge:
def _reference(D, r, share):
    branches = {n: nn.ModuleDict({"down": nn.Linear(D, r), "up": nn.Linear(r, D)}) for n in ("vision", "text", "cross")}
    for part in ("down", "up"):
        for name in ("text", "cross") if share in (part, "all") else ():
            branches[name][part].weight = branches["vision"][part].weight
            branches[name][part].bias = branches["vision"][part].bias
    return nn.ModuleDict(branches)


_hidden.grade(_answers, _hidden.ask(_reference, _cases, _observe), shared=4, registered=2)
### END HIDDEN TESTS
# %% [markdown]
# ## Exercise 2 · What a shared weight learns (5 points: values 4, inputs left alone 1)
#
# Three branches share $W$, of shape $(r, D)$. Branch $b$ reads $h_b$, of shape $(N_b, D)$, one row for each token, and has an up-projection $U_b$
# of shape $(D, r)$; no biases, no LayerNorm:
#
# $$z_b = \mathrm{ReLU}(h_b W^\top) \qquad o_b = z_b U_b^\top$$
#
# You are given `hidden`, `ups` and `grads`, lists with $h_b$, $U_b$ and $\partial L / \partial o_b$ (of shape $(N_b, D)$) for each branch, and `W`.
# Return $\partial L / \partial W$, a new tensor of shape $(r, D)$. There may be more or fewer than three branches, but at least one. (Where a
# number before ReLU is exactly 0, take 0 as its slope.)
# %% solution shared-gradient
def shared_gradient(hidden, W, ups, grads):
    ### BEGIN SOLUTION
    total = torch.zeros_like(W)
    for h, U, g in zip(hidden, ups, grads):
        dz = (g @ U) * (h @ W.T > 0)  # nothing comes back where ReLU gave zero
        total = total + dz.T @ h
    return total
    ### END SOLUTION


# %%
checks.a3.shared_gradient(shared_gradient)
# %% test shared-gradient-test 5
# Exercise 2 is graded here: values 4 points, inputs left alone 1.
### BEGIN HIDDEN TESTS
import torch

from uniadapter_edu.grading import hidden as _hidden

_draw, _cases = _hidden.Cases("shared-gradient"), []
for _n in (3, _draw.size(1, 2), 4, 3):
    (_D, _r), _dtype = _draw.sizes(2, 2, 8), _draw.dtype()
    _tokens = [_draw.size(1, 6) for _ in range(_n)]
    _hs, _gs = ([_draw.tensor(t, _D, dtype=_dtype) for t in _tokens] for _ in range(2))
    _W, _us = _draw.tensor(_r, _D, dtype=_dtype), [_draw.tensor(_D, _r, dtype=_dtype) for _ in range(_n)]
    _cases.append(_draw.case(_hs, _W, _us, _gs))
# ask:
_answers = _hidden.ask(shared_gradient, _cases)
# judge:
def _reference(hidden, W, ups, grads):
    with torch.enable_grad():
        w = W.detach().clone().requires_grad_()
        loss = sum((torch.relu(h.detach() @ w.T) @ U.detach().T * g.detach()).sum() for h, U, g in zip(hidden, ups, grads))
    return torch.autograd.grad(loss, w)[0]


_hidden.grade(_answers, _hidden.ask(_reference, _cases), values=4, inputs=1)
### END HIDDEN TESTS
# %% [markdown]
# ## Exercise 3 · What sharing buys (5 points)
#
# One layer with `downs` down-projections, `ups` up-projections and one LayerNorm has
#
# $$2D + \mathrm{downs} \cdot (Dr + r) + \mathrm{ups} \cdot (rD + D)$$
#
# parameters. Return the largest whole number $r$ with which that is at most `budget`, as an `int`; 0 if not even $r = 1$ is.
# %% solution widest
def widest(D, budget, downs, ups):
    ### BEGIN SOLUTION
    rest = budget - 2 * D - ups * D
    return max(0, rest // (downs * (D + 1) + ups * D))
    ### END SOLUTION


# %%
checks.a3.widest(widest)
# %% test widest-test 5
# Exercise 3 is graded here: 5 points.
### BEGIN HIDDEN TESTS
from uniadapter_edu import bottleneck_for as _bottleneck_for
from uniadapter_edu.grading import hidden as _hidden

_draw, _cases = _hidden.Cases("widest"), []
for _ in range(6):
    _D, _r, _downs, _ups = _draw.size(5, 300), _draw.size(1, 90), _draw.size(1, 4), _draw.size(1, 4)
    _size = 2 * _D + _downs * (_D * _r + _r) + _ups * (_r * _D + _D)
    _cases += [_draw.case(_D, _size + more, _downs, _ups) for more in (-1, 0, 1)]
_cases += [_draw.case(_D, 2 * _D + 3, 1, 3), _draw.case(_D, 0, 3, 3)]
# ask:
_answers = _hidden.ask(widest, _cases, lambda f, case: {"values": case.call(f)}, forbidden=(_bottleneck_for,))
# judge:
def _reference(D, budget, downs, ups):
    r = 0
    while 2 * D + downs * (D * (r + 1) + (r + 1)) + ups * ((r + 1) * D + D) <= budget:
        r += 1
    return r


_hidden.grade(_answers, _hidden.ask(_reference, _cases, lambda f, case: {"values": case.call(f)}), values=5)
### END HIDDEN TESTS
# %% [markdown]
# ## Reflection (4 points, graded by a person)
#
# In 100 to 200 words: UniAdapter shares the down-projection and not the ups. (a) Give one reason for sharing the downs that is not the number of
# parameters, and one against. (b) Somebody shows that sharing is 0.8 points better than not sharing, at the same $r$. What would you ask before you
# believe it?
#
# **Rubric** (a) a reason for and a reason against, each tied to what the weight is trained by or what it computes: 2. (b) one question about
# what was compared, and one about how sure the number is: 2.
# %% [markdown] answer reflection 4
# ### BEGIN SOLUTION
# (a) For: what one branch learns to ask, the others can use at once, since the gradients of all three add up in one weight. Against: those
# gradients may be opposed, and no branch can have questions of its own without using up some of the r. (b) At the same r, not sharing has half
# as many parameters again: is the comparison one of sharing or of size? I would ask for equal budgets. And over how many
# seeds, with what spread: 0.8 points may be less than another seed makes.
# ### END SOLUTION
