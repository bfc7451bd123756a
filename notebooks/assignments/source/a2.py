# %% [markdown]
# # Assignment 2 · Freeze, insert, and count
#
# You take a model that somebody else wrote, freeze it, put adapters into it from outside, and say what it costs.
#
# **You will be able to** freeze a model without missing a part of it; change what a layer gives out without changing its code, and undo it;
# count trainable parameters honestly.
#
# **Points** 20: exercises 5 + 6 + 5, reflection 4. **Time** about 60 minutes. **Read before** notebooks 02 and 03, and in
# [PyTorch's documentation](https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html) `register_forward_hook`, if you want to use
# hooks.
#
# **Hand in** this notebook, as `a2.ipynb`. Write only where it says so; you may add cells. Checks use other models than the hidden tests.
# The functions have to be yours: those of `uniadapter_edu` that do the same are switched off while your work is graded.
# %% setup
# %%
import torch
from torch import nn

from uniadapter_edu import checks

# %% [markdown]
# ## Exercise 1 · Freeze (5 points: frozen 3, gradients pass 1, the rest left alone 1)
#
# After `freeze(model)` no parameter of the model trains, wherever it sits and whatever it is called. Everything else is as it was:
# the numbers, the mode (`train` or `eval`), the parameters as objects, and that gradients pass *through* the model to what lies before it.
# Return the model itself.
# %% solution freeze
def freeze(model):
    ### BEGIN SOLUTION
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model
    ### END SOLUTION


# %%
checks.a2.freeze(freeze)
# %% test freeze-test 5
# Exercise 1 is graded here: frozen 3 points, gradients pass 1, the rest left alone 1.
### BEGIN HIDDEN TESTS
import torch
from torch import nn

import uniadapter_edu as _ua
from uniadapter_edu.grading import hidden as _hidden

_draw, _cases = _hidden.Cases("freeze"), []
for _mode in (True, False):
    _D = _draw.size(3, 6)
    _inner = nn.Sequential(_draw.linear(_D, _D), nn.ReLU(), nn.Sequential(_draw.linear(_D, _D), nn.BatchNorm1d(_D)))
    _model = nn.Sequential()
    _model.add_module(_draw.choice("proj_m", "head", "adapter_x"), _draw.linear(_D, _D))
    _model.add_module("inner", _inner)
    _model.add_module(_draw.choice("x_norm", "y_cross_modal"), _draw.norm(_D))
    _model.own = nn.Parameter(_draw.tensor(2, strided=False))
    _inner[0].bias.requires_grad_(False)  # some may be frozen already
    _cases.append(_draw.case(_model.train(_mode), x=_draw.tensor(4, _D)))


def _observe(freeze, case):
    (model,), x = case.arguments, case.named["x"].requires_grad_()
    before = [(p, p.detach().clone()) for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    returned = freeze(model)
    out = model(x)
    passes = out.requires_grad and bool(torch.autograd.grad(out.square().sum(), x)[0].any())
    now = list(model.parameters())
    return {
        "frozen": [len(now), [p.requires_grad for p in now]],
        "gradients_pass": passes,
        "rest_left_alone": {
            "returns the model": returned is model,
            "same parameters": len(now) == len(before) and all(p is q for p, (q, _) in zip(now, before)),
            "same numbers": all(torch.equal(p, old) for p, (_, old) in zip(now, before)),
            "same mode": [m.training for m in model.modules()] == modes,
        },
    }


# ask:
_answers = _hidden.ask(freeze, _cases, _observe, forbidden=(_ua.freeze,))
# judge:
_right = _hidden.ask(lambda model: model.requires_grad_(False), _cases, _observe)
_hidden.grade(_answers, _right, frozen=3, gradients_pass=1, rest_left_alone=1)
### END HIDDEN TESTS
# %% [markdown]
# ## Exercise 2 · Insert, and take out again (6 points: inserted 3, removed 2, learns 1)
#
# `model.blocks` is an `nn.ModuleList` of different blocks, none of which occurs twice, and `model(x)` calls them one after the other, each
# with one tensor. `adapters` is a list of modules, one for each block. After `insert(model, adapters)` block $k$ has to give
#
# $$x' = \mathrm{block}_k(x) + A_k(x)$$
#
# where $x$ is what goes **into** the block. You cannot change the code of the blocks, which may be of any class. No tensor may be changed in
# place. The adapters train; whether `model.parameters()` lists them while they are inserted is up to you. Return a function without
# arguments: when it is called, `model` is exactly what it was before.
# %% solution insert
def insert(model, adapters):
    ### BEGIN SOLUTION
    handles = []
    for block, adapter in zip(model.blocks, adapters):
        # `adapter=adapter` binds this adapter now, and not the last one when the hook is called
        hook = lambda module, args, output, adapter=adapter: output + adapter(args[0])
        handles.append(block.register_forward_hook(hook))

    def remove():
        for handle in handles:
            handle.remove()

    return remove
    ### END SOLUTION


# %%
checks.a2.insert(insert)
# %% test insert-test 6
# Exercise 2 is graded here: inserted 3 points, removed 2, learns 1.
### BEGIN HIDDEN TESTS
import torch
from torch import nn

from uniadapter_edu.grading import hidden as _hidden


class _Model(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


_draw, _cases = _hidden.Cases("insert"), []
for _n in (1, 3, _draw.size(2, 4)):
    _D, _dtype = _draw.size(2, 6), _draw.dtype()
    _blocks = [_draw.linear(_D, _D, _dtype) for _ in range(_n)]
    _blocks.insert(_draw.size(0, _n), nn.Identity())  # a block may give back what it was given
    _adapters = [_draw.linear(_D, _D, _dtype) for _ in _blocks]
    _cases.append(_draw.case(_Model(_blocks), _adapters, x=_draw.tensor(2, 3, _D, dtype=_dtype)))


def _observe(insert, case):
    (model, adapters), x = case.arguments, case.named["x"]
    before = x.clone()
    names = list(model.state_dict())
    remove = insert(model, adapters)
    out = model(x)
    unchanged = torch.equal(x, before)
    trained = [p for adapter in adapters for p in adapter.parameters()]
    grads = torch.autograd.grad(out.square().sum(), trained, allow_unused=True) if out.requires_grad else trained
    remove()
    after = {"output": model(x).detach(), "names of parameters": list(model.state_dict())}
    return {
        "inserted": {"output": out.detach(), "input unchanged": unchanged},
        "removed": after | {"names are the old ones": names == after["names of parameters"]},
        "learns": [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(trained, grads)],
    }


# ask:
_answers = _hidden.ask(insert, _cases, _observe)
# judge:
def _reference(model, adapters):
    old = list(model.blocks)

    class Adapted(nn.Module):
        def __init__(self, block, adapter):
            super().__init__()
            self.block, self.adapter = block, adapter

        def forward(self, x):
            return self.block(x) + self.adapter(x)

    model.blocks = nn.ModuleList(Adapted(b, a) for b, a in zip(old, adapters))

    def remove():
        model.blocks = nn.ModuleList(old)

    return remove


_right = _hidden.ask(_reference, _cases, _observe)
_hidden.grade(_answers, _right, inserted=3, removed=2, learns=1)
### END HIDDEN TESTS
# %% [markdown]
# ## Exercise 3 · Count (5 points: trainable 3, percent 2)
#
# Return a tuple of two: how many parameters train, in `backbone` and `adapters` together, and how many percent that is of **all
# parameters of the backbone**, trainable or not (unrounded; 1.08 means 1.08 %). A parameter that is used in several places is one
# parameter, even if it is in both modules. Buffers are no parameters.
# %% solution count
def count(backbone, adapters):
    ### BEGIN SOLUTION
    parameters = {id(p): p for p in [*backbone.parameters(), *adapters.parameters()]}.values()
    trainable = sum(p.numel() for p in parameters if p.requires_grad)
    return trainable, 100 * trainable / sum(p.numel() for p in backbone.parameters())
    ### END SOLUTION


# %%
checks.a2.count(count)
# %% test count-test 5
# Exercise 3 is graded here: trainable 3 points, percent 2.
### BEGIN HIDDEN TESTS
from torch import nn

import uniadapter_edu as _ua
from uniadapter_edu.grading import hidden as _hidden

_draw, _cases = _hidden.Cases("count"), []
for _both in (False, True, False):
    _D, _r = _draw.sizes(2, 3, 40)
    _backbone = nn.Sequential(nn.Linear(_D, _D), nn.BatchNorm1d(_D), nn.Linear(_D, _r)).requires_grad_(False)
    _down = nn.Linear(_D, _r)
    _adapters = nn.ModuleList([nn.ModuleDict({"down": _down, "up": nn.Linear(_r, _D)}) for _ in range(_draw.size(2, 4))])
    _adapters.append(nn.Linear(_r, _draw.size(5, 20)).requires_grad_(False))
    _adapters[0]["up"].weight.requires_grad_(_draw.choice(True, False))
    if _both:  # a head that trains, in both
        _backbone[2].requires_grad_(True)
        _adapters.append(_backbone[2])
    _cases.append(_draw.case(_backbone, _adapters))


def _observe(count, case):
    trainable, percent = case.call(count)
    return {"trainable": float(trainable), "percent": float(percent)}


# ask:
_answers = _hidden.ask(count, _cases, _observe, forbidden=(_ua.trainable_parameters,))
# judge:
def _reference(backbone, adapters):
    both = nn.ModuleList([backbone, adapters])  # parameters() of one module gives each object once
    trainable = sum(p.numel() for p in both.parameters() if p.requires_grad)
    return trainable, trainable / sum(p.numel() for p in backbone.parameters()) * 100


_hidden.grade(_answers, _hidden.ask(_reference, _cases, _observe), trainable=3, percent=2)
### END HIDDEN TESTS
# %% [markdown]
# ## Reflection (4 points, graded by a person)
#
# In 100 to 200 words: an adapter trains 1 % of the parameters. (a) Which two of these shrink about a hundredfold, and why: the optimizer's
# memory, the activations' memory, the time of a step, the file that has to be kept for each task? (b) Why do the others not?
#
# **Rubric** (a) both right, with the reason: 2. (b) says that gradients still pass through the frozen layers, and what that needs: 2.
# %% [markdown] answer reflection 4
# ### BEGIN SOLUTION
# (a) Adam keeps two numbers for each trainable parameter, and the gradient one more; frozen ones have none. The file holds only what was
# trained. (b) Adapters sit in every layer. The gradient of the first one passes through all frozen layers above it, so that their activations have
# to be kept and the product with each frozen weight has to be computed in the backward pass. Only the gradients of the frozen
# weights are saved, about a third of the work.
# ### END SOLUTION
