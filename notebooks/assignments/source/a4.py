# %% [markdown]
# # Assignment 4 · The cross-modal branch and the query residual
#
# You write the third branch of UniAdapter, and then the layer in which text and picture meet.
#
# **You will be able to** write the cross-modal branch with everything it reuses; say which state each adapter of a multimodal layer reads, and
# why; let one layer serve text alone and text with a picture.
#
# **Points** 20: exercises 7 + 6 + 3, reflection 4. **Time** about 60 minutes. **Read before** notebook 05.
#
# **Hand in** this notebook, as `a4.ipynb`. Write only where it says so; you may add cells. Checks use other numbers than the hidden tests.
# The functions have to be yours: those of `uniadapter_edu` that do the same are switched off while your work is graded.
# %% setup
# %%
import torch
from torch import nn

from uniadapter_edu import checks

# %% [markdown]
# ## Exercise 1 · The cross branch (7 points: values 4, gradients 2, inputs left alone 1)
#
# $$z(h) = \mathrm{ReLU}\big(W_{down}\, \mathrm{LN}(h) + b_{down}\big)$$
# $$A_{cross}(h) = s \cdot \mathrm{LN}_x\big(W_{cross}\, z + b_{cross} + W_{text}\, z + b_{text}\big)$$
#
# `norm` is $\mathrm{LN}$, `down`, `up_cross` and `up_text` are `nn.Linear`, `s` is a number. `norm_cross` is $\mathrm{LN}_x$; where it is
# `None`, there is none, and the sum is taken as it is. The gradient has to reach all of them.
# %% solution cross-branch
def cross_branch(h, norm, down, up_cross, up_text, s, norm_cross=None):
    ### BEGIN SOLUTION
    z = torch.relu(down(norm(h)))
    added = up_cross(z) + up_text(z)
    if norm_cross is not None:
        added = norm_cross(added)
    return s * added
    ### END SOLUTION


# %%
checks.a4.cross_branch(cross_branch)
# %% test cross-branch-test 7
# Exercise 1 is graded here: values 4 points, gradients 2, inputs left alone 1.
### BEGIN HIDDEN TESTS
from torch.nn.functional import linear as _linear

from uniadapter_edu import UniAdapter as _UniAdapter
from uniadapter_edu.grading import hidden as _hidden

_draw, _cases = _hidden.Cases("cross-branch"), []
for _with in (False, True, True, False):
    (_D, _r), _dtype = _draw.sizes(2, 3, 9), _draw.dtype()
    _maps = [_draw.linear(_D, _r, _dtype), _draw.linear(_r, _D, _dtype), _draw.linear(_r, _D, _dtype)]
    _h = _draw.tensor(*[_draw.size(1, 4) for _ in range(_draw.size(1, 2))], _D, dtype=_dtype)
    _last = {"norm_cross": _draw.norm(_D, _dtype)} if _with else {}
    _cases.append(_draw.case(_h, _draw.norm(_D, _dtype), *_maps, _draw.number(0.1, 3), **_last))
# ask:
_forbidden = (_UniAdapter.bottleneck, _UniAdapter.cross, _UniAdapter.text, _UniAdapter.vision)
_answers = _hidden.ask(cross_branch, _cases, forbidden=_forbidden)
# judge:
def _reference(h, norm, down, up_cross, up_text, s, norm_cross=None):
    z = down(norm(h)).clamp(min=0)
    added = _linear(z, up_cross.weight + up_text.weight, up_cross.bias + up_text.bias)
    return (added if norm_cross is None else norm_cross(added)) * s


_hidden.grade(_answers, _hidden.ask(_reference, _cases), values=4, gradients=2, inputs=1)
### END HIDDEN TESTS
# %% [markdown]
# ## Exercise 2 · The multimodal layer (6 points: values 4, gradients 1, inputs left alone 1)
#
# $$a = \mathrm{LN}(x + \mathrm{SelfAttn}\, x) \qquad c = \mathrm{LN}(a + \mathrm{CrossAttn}(a, e))
# \qquad x' = \mathrm{LN}(c + \mathrm{FFN}\, c) + A_{text}(a) + A_{cross}(c)$$
#
# You are given the parts as functions. Their residual and their LayerNorm are **inside of them already**: `self_attention(x)` is $a$,
# `cross_attention(a, e)` is $c$, and `feed_forward(c)` is $\mathrm{LN}(c + \mathrm{FFN}\, c)$. `A_text(h)` and `A_cross(h)` are the two
# adapters. Return $x'$.
#
# ## Exercise 3 · The same layer without a picture (3 points)
#
# The same function also serves the text encoder. Where `e` is `None`, neither `cross_attention` nor `A_cross` may be called:
#
# $$x' = \mathrm{LN}(a + \mathrm{FFN}\, a) + A_{text}(a)$$
# %% solution multimodal-layer
def multimodal_layer(x, e, self_attention, cross_attention, feed_forward, A_text, A_cross):
    ### BEGIN SOLUTION
    a = self_attention(x)
    if e is None:
        return feed_forward(a) + A_text(a)
    c = cross_attention(a, e)
    return feed_forward(c) + A_text(a) + A_cross(c)
    ### END SOLUTION


# %%
checks.a4.multimodal_layer(multimodal_layer)
checks.a4.text_only(multimodal_layer)
# %% test multimodal-layer-test 6
# Exercise 2 is graded here: values 4 points, gradients 1, inputs left alone 1.
### BEGIN HIDDEN TESTS
import torch
from torch import nn

from uniadapter_edu.grading import hidden as _hidden


class _Part(nn.Module):
    """A residual, something nonlinear, and a LayerNorm. With `other`, what is attended to."""

    def __init__(self, linear, norm):
        super().__init__()
        self.linear, self.norm = linear, norm

    def forward(self, x, other=None):
        return self.norm(x + torch.tanh(self.linear(x if other is None else other.mean(-2, keepdim=True))))


_draw, _cases = _hidden.Cases("multimodal-layer"), []
for _ in range(3):
    _D, _dtype = _draw.size(3, 8), _draw.dtype()
    _parts = [_Part(_draw.linear(_D, _D, _dtype), _draw.norm(_D, _dtype)) for _ in range(3)]
    _adapters = [nn.Sequential(_draw.linear(_D, _D, _dtype), nn.ReLU()) for _ in range(2)]
    _x, _e = (_draw.tensor(2, n, _D, dtype=_dtype) for n in _draw.sizes(2, 1, 6))
    _cases.append(_draw.case(_x, _e, *_parts, *_adapters))
# ask:
_answers = _hidden.ask(multimodal_layer, _cases)
# judge:
def _reference(x, e, self_attention, cross_attention, feed_forward, A_text, A_cross):
    before = self_attention(x)
    behind = cross_attention(before, e)
    return sum([A_cross(behind), feed_forward(behind), A_text(before)])


_hidden.grade(_answers, _hidden.ask(_reference, _cases), values=4, gradients=1, inputs=1)
### END HIDDEN TESTS
# %% test text-only-test 3
# Exercise 3 is graded here: 3 points.
### BEGIN HIDDEN TESTS
import torch
from torch import nn

from uniadapter_edu.grading import hidden as _hidden


def _no_cross_attention(*_):
    raise RuntimeError("cross-attention or the cross branch was called without a picture")


_draw, _cases = _hidden.Cases("text-only"), []
for _ in range(3):
    _D, _dtype = _draw.size(3, 8), _draw.dtype()
    _attend, _feed, _text = (nn.Sequential(_draw.linear(_D, _D, _dtype), nn.Tanh(), _draw.norm(_D, _dtype)) for _ in range(3))
    _x = _draw.tensor(_draw.size(1, 3), _draw.size(1, 5), _D, dtype=_dtype)
    _cases.append(_draw.case(_x, None, _attend, _no_cross_attention, _feed, _text, _no_cross_attention))
# ask:
_answers = _hidden.ask(multimodal_layer, _cases)
# judge:
def _reference(x, e, self_attention, cross_attention, feed_forward, A_text, A_cross):
    a = self_attention(x)
    return A_text(a) + feed_forward(a)


_hidden.grade(_answers, _hidden.ask(_reference, _cases), values=3)
### END HIDDEN TESTS
# %% [markdown]
# ## Reflection (4 points, graded by a person)
#
# In 100 to 200 words: (a) why is the query residual taken from $a$ and not from $c$? (b) The cross branch adds $W_{text}\, z$ to its own $W_{cross}\, z$.
# One matrix could compute the same sum. So what does the reuse change?
#
# **Rubric** (a) says what $c$ depends on and $a$ does not, and what the text branch gains by that: 2. (b) says that nothing more can be computed, and
# what is different in training: 2.
# %% [markdown] answer reflection 4
# ### BEGIN SOLUTION
# (a) Before cross-attention the text has not looked at the picture in this layer. The correction of the text branch there is the same as in the
# text-only pass, for which it is trained too; taken from c it would have to serve two kinds of input. (b) Nothing more can be computed. But with
# W_cross at zero the branch answers as the text branch does and learns only a difference. And matching, which has no text-only pass,
# sends a gradient to W_text by this way.
# ### END SOLUTION
