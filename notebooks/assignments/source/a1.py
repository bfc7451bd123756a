# %% [markdown]
# # Assignment 1 · The bottleneck adapter
#
# You write the module of which UniAdapter is made: from its LayerNorm to the way it has to start.
#
# **You will be able to** write a LayerNorm and a bottleneck adapter from their equations; say what each part is for; start an
# adapter so that it changes nothing and can learn everything.
#
# **Points** 20: exercises 5 + 6 + 5, reflection 4. **Time** about 45 minutes. **Read before** notebook 03.
#
# **Hand in** this notebook, as `a1.ipynb`. Write only where it says so; you may add cells. After each exercise a check tells
# you what is wrong; it uses other numbers, and fewer of them, than the hidden tests that give the points. Those try other
# shapes, batch dimensions and dtypes, look at gradients, and make sure that your function leaves its inputs as they were.
# The functions have to be yours: those of `uniadapter_edu` that do the same are switched off while your work is graded.
# %% setup
# %%
import torch
from torch import nn

from uniadapter_edu import checks

# %% [markdown]
# ## Exercise 1 · LayerNorm (5 points: values 3, gradients 1, inputs left alone 1)
#
# $$\mathrm{LN}(h) = \frac{h - \mu}{\sqrt{\sigma^2 + \epsilon}} \cdot w + b
# \qquad \mu = \frac1D \sum_{i=1}^D h_i \qquad \sigma^2 = \frac1D \sum_{i=1}^D (h_i - \mu)^2$$
#
# `h` has any number of dimensions, the last of which is $D$; each vector of $D$ numbers is normalised by itself. `weight` and
# `bias` have $D$ numbers in the dtype of `h` (float32 or float64), `eps` is a float. Return a new tensor of the shape and dtype of `h`.
# Write it with means and roots, not with PyTorch's LayerNorm, which is switched off in the hidden tests.
#
# For example, `layer_norm(torch.tensor([3., 1., 3., 1.]), torch.ones(4), torch.zeros(4), 0.0)` is `[1, -1, 1, -1]`.
# %% solution layer-norm
def layer_norm(h, weight, bias, eps):
    ### BEGIN SOLUTION
    mean = h.mean(-1, keepdim=True)
    variance = (h - mean).pow(2).mean(-1, keepdim=True)
    return (h - mean) / torch.sqrt(variance + eps) * weight + bias
    ### END SOLUTION


# %%
checks.a1.layer_norm(layer_norm)
# %% test layer-norm-test 5
# Exercise 1 is graded here: values 3 points, gradients 1, inputs left alone 1.
### BEGIN HIDDEN TESTS
from torch.nn.functional import layer_norm as _layer_norm

from uniadapter_edu.grading import hidden as _hidden

_draw, _cases = _hidden.Cases("layer-norm"), []
for _shape in [(), (_draw.size(2, 6),), (_draw.size(1, 3), _draw.size(2, 5)), (2, 1, 3)]:
    _D, _dtype = _draw.size(3, 9), _draw.dtype()
    _h = _draw.tensor(*_shape, _D, dtype=_dtype) * _draw.number(0.5, 3) + _draw.number(-2, 2)
    _weight, _bias = _draw.tensor(_D, dtype=_dtype), _draw.tensor(_D, dtype=_dtype)
    _cases.append(_draw.case(_h, _weight, _bias, _draw.choice(0.5, 1e-1, 1e-5)))
_cases.append(_draw.case(*_cases[0].arguments[:3], eps=0.3))  # by name, as the text calls it
# ask:
_answers = _hidden.ask(layer_norm, _cases, forbidden=(_layer_norm,))
# judge:
_right = _hidden.ask(lambda h, weight, bias, eps: _layer_norm(h, h.shape[-1:], weight, bias, eps), _cases)
_hidden.grade(_answers, _right, values=3, gradients=1, inputs=1)
### END HIDDEN TESTS
# %% [markdown]
# ## Exercise 2 · The adapter (6 points: values 4, gradients 1, inputs left alone 1)
#
# $$z(h) = \mathrm{ReLU}\big(W_{down}\, \mathrm{LN}(h) + b_{down}\big) \qquad\qquad A(h) = s \cdot \big(W_{up}\, z(h) + b_{up}\big)$$
#
# Return $A(h)$, which is what will be *added* to the layer, and not the layer's new output. `norm` is an `nn.LayerNorm`, `down` and
# `up` are `nn.Linear` (their `bias` may be `None`), and `s` is a number. You may use them as they are: nothing depends on exercise 1.
# %% solution adapter
def adapter(h, norm, down, up, s):
    ### BEGIN SOLUTION
    z = torch.relu(down(norm(h)))
    return s * up(z)
    ### END SOLUTION


# %%
checks.a1.adapter(adapter)
# %% test adapter-test 6
# Exercise 2 is graded here: values 4 points, gradients 1, inputs left alone 1.
### BEGIN HIDDEN TESTS
from uniadapter_edu import UniAdapter as _UniAdapter
from uniadapter_edu.grading import hidden as _hidden

_draw, _cases = _hidden.Cases("adapter"), []
for _shape in [(3,), (_draw.size(1, 3), _draw.size(2, 5)), ()]:
    (_D, _r), _dtype, _bias = _draw.sizes(2, 3, 9), _draw.dtype(), _draw.choice(True, False)
    _parts = [_draw.norm(_D, _dtype), _draw.linear(_D, _r, _dtype, _bias), _draw.linear(_r, _D, _dtype, _bias or not _shape)]
    _cases.append(_draw.case(_draw.tensor(*_shape, _D, dtype=_dtype), *_parts, _draw.number(0.1, 4)))
_cases.append(_draw.case(*_cases[0].arguments[:4], s=-0.7))
_cases.append(_draw.case(_draw.tensor(2, 4, 6), _draw.norm(6), _draw.linear(6, 3), _draw.linear(3, 6), 2.5))
# ask:
_answers = _hidden.ask(adapter, _cases, forbidden=(_UniAdapter.bottleneck, _UniAdapter.vision, _UniAdapter.text))
# judge:
def _reference(h, norm, down, up, s):
    z = down(norm(h)).clamp(min=0)
    added = torch.einsum("...r,dr->...d", z, up.weight)
    return s * (added if up.bias is None else added + up.bias)


_hidden.grade(_answers, _hidden.ask(_reference, _cases), values=4, gradients=1, inputs=1)
### END HIDDEN TESTS
# %% [markdown]
# ## Exercise 3 · A start that changes nothing (5 points: adds nothing 2, can learn 2, the rest left alone 1)
#
# You are given the three parts of an adapter, with random weights, none of them zero. Set them **in place** so that $A(h) = 0$ for every $h$, and
# so that already the first gradient step can change that. Change no more than you have to; everything that could train before must
# be able to afterwards, as the same `nn.Parameter`. Return nothing. Both maps have a bias here.
# %% solution start
def start(norm, down, up):
    ### BEGIN SOLUTION
    nn.init.zeros_(up.weight)
    nn.init.zeros_(up.bias)
    ### END SOLUTION


# %%
checks.a1.start(start)
# %% test start-test 5
# Exercise 3 is graded here: adds nothing 2 points, can learn 2, the rest left alone 1.
### BEGIN HIDDEN TESTS
import torch

from uniadapter_edu.grading import hidden as _hidden

_draw, _cases = _hidden.Cases("start"), []
for _ in range(3):
    (_D, _r), _dtype = _draw.sizes(2, 3, 9), _draw.dtype()
    _parts = [_draw.norm(_D, _dtype), _draw.linear(_D, _r, _dtype), _draw.linear(_r, _D, _dtype)]
    torch.nn.init.constant_(_parts[1].bias, 2.0)  # some questions are answered with yes
    _cases.append(_draw.case(*_parts, h=_draw.tensor(4, _D, dtype=_dtype)))


def _observe(start, case):
    norm, down, up = case.arguments
    parameters = [p for part in case.arguments for p in part.parameters()]
    rest = [p.detach().clone() for part in (norm, down) for p in part.parameters()]
    start(norm, down, up)
    now = [p for part in case.arguments for p in part.parameters()]
    added = up(torch.relu(down(norm(case.named["h"]))))
    added.sum().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in now]
    return {
        "adds_nothing": [added.detach(), up.weight.detach().clone()],
        "can_learn": [gradients, [p.requires_grad for p in now]],
        "rest_left_alone": {
            "same numbers": all(torch.equal(p, q) for p, q in zip(now, rest)),
            "same parameters": [p is q for p, q in zip(now, parameters)],
        },
    }


# ask:
_answers = _hidden.ask(start, _cases, _observe)
# judge:
def _reference(norm, down, up):
    for p in up.parameters():
        p.data.mul_(0)


_hidden.grade(_answers, _hidden.ask(_reference, _cases, _observe), adds_nothing=2, can_learn=2, rest_left_alone=1)
### END HIDDEN TESTS
# %% [markdown]
# ## Reflection (4 points, graded by a person)
#
# In 100 to 200 words: a frozen layer computes $F(h)$, and the adapted one $F(h) + A(h)$. (a) Why can this adapter not be merged into the
# frozen layer's weights after training, though LoRA can? (b) What would go wrong, and when would you notice, if *both* projections
# started at zero?
#
# **Rubric** (a) names the ReLU, and says what it does to a merge: 2. (b) names the vanishing gradient, and that of which map: 1; says how it
# shows in training: 1.
# %% [markdown] answer reflection 4
# ### BEGIN SOLUTION
# (a) Between the two maps stands a ReLU. Which columns of the up-projection are added depends on the token, so that no single matrix does the
# same for all. LoRA is linear: its product can be added to the weight. (b) With the up-projection at zero no gradient reaches the
# down-projection, and with z at zero none reaches the up-projection's weight: both stay where they are. Only the up's bias
# learns, the same for every token. The loss falls a little and then stays.
# ### END SOLUTION
