# %% [markdown]
# # Assignment 5 · Frame-aware attention
#
# A clip has frames, and a sentence is about some of them. You write the attention that knows which, without a single parameter.
#
# **You will be able to** weigh the frames of a clip by how well they fit a text; say what is normalised over what; find your way in
# frame-major tokens without mixing up frames, patches and clips.
#
# **Points** 20: exercises 5 + 5 + 6, reflection 4. **Time** about 45 minutes. **Read before** notebook 08; of notebook 01, what a CLS token is.
#
# **The method, in short.** A clip has $F$ frames, and each frame $n$ tokens, of which the first is its CLS token and the others are its patches.
# (1) $w_f$ is the cosine of the text's feature with the feature of frame $f$. (2) $m_f = F \cdot \mathrm{softmax}_f(w_f / \tau)$, so that the mean
# of $m$ over the clip is 1. (3) In cross-attention the keys of each frame's patches are multiplied by $m_f$. No gradient flows into $w$.
#
# **Hand in** this notebook, as `a5.ipynb`. Write only where it says so; you may add cells. Checks use other numbers than the hidden tests.
# The functions have to be yours: those of `uniadapter_edu` that do the same are switched off while your work is graded.
# %% setup
# %%
import torch

from uniadapter_edu import checks

# %% [markdown]
# ## Exercise 1 · Frame weights (5 points: values 3, no gradient 1, inputs left alone 1)
#
# `text` has the shape $(B, P)$: one feature vector for each of $B$ clips. `frames` has the shape $(B, F, P)$. Neither is normalised. Return the
# cosine of each clip's text with each of *its* frames, a new tensor of shape $(B, F)$, into which no gradient flows. (No vector is zero.)
# %% solution frame-weights
def frame_weights(text, frames):
    ### BEGIN SOLUTION
    text = text / text.norm(dim=-1, keepdim=True)
    frames = frames / frames.norm(dim=-1, keepdim=True)
    return (frames @ text[:, :, None])[:, :, 0].detach()
    ### END SOLUTION


# %%
checks.a5.frame_weights(frame_weights)
# %% test frame-weights-test 5
# Exercise 1 is graded here: values 3 points, no gradient 1, inputs left alone 1.
### BEGIN HIDDEN TESTS
from torch.nn.functional import normalize as _normalize

from uniadapter_edu.attention import frame_weights as _package
from uniadapter_edu.grading import hidden as _hidden

_draw, _cases = _hidden.Cases("frame-weights"), []
for _B in (1, 3, _draw.size(2, 4)):
    (_F, _P), _dtype = _draw.sizes(2, 2, 8), _draw.dtype()
    _text, _frames = _draw.tensor(_B, _P, dtype=_dtype), _draw.tensor(_B, _F, _P, dtype=_dtype)
    _cases.append(_draw.case(_text * _draw.number(1, 5), _frames * _draw.number(1, 5)))
_cases.append(_draw.case(_draw.tensor(3, 4), _draw.tensor(3, 1, 4)))  # a clip of one frame
# ask:
_answers = _hidden.ask(frame_weights, _cases, forbidden=(_package,))
# judge:
_right = _hidden.ask(lambda t, v: _package(_normalize(t, dim=-1), _normalize(v, dim=-1)), _cases)
_hidden.grade(_answers, _right, values=3, gradients=1, inputs=1)
### END HIDDEN TESTS
# %% [markdown]
# ## Exercise 2 · Multipliers (5 points: values 4, no gradient 1)
#
# $$m_f = F \cdot \mathrm{softmax}_f(w_f / \tau)$$
#
# `w` has the shape $(\ldots, F)$, and $\tau$ is `temperature`, a number. Return $m$, of the shape of `w`, without a gradient into `w`. For example,
# equal weights give 1 for each frame.
# %% solution multipliers
def multipliers(w, temperature):
    ### BEGIN SOLUTION
    frames = w.shape[-1]
    return frames * torch.softmax(w.detach() / temperature, dim=-1)
    ### END SOLUTION


# %%
checks.a5.multipliers(multipliers)
# %% test multipliers-test 5
# Exercise 2 is graded here: values 4 points, no gradient 1.
### BEGIN HIDDEN TESTS
from uniadapter_edu.attention import frame_multipliers as _package
from uniadapter_edu.grading import hidden as _hidden

_draw, _cases = _hidden.Cases("multipliers"), []
for _shape in [(_draw.size(2, 4),), (), (2, _draw.size(2, 3))]:
    _w = _draw.tensor(*_shape, _draw.size(5, 9), dtype=_draw.dtype()) * 2
    _cases.append(_draw.case(_w, _draw.choice(1.0, 4.0, 0.5, 2)))
_cases.append(_draw.case(_draw.tensor(3, 2), temperature=_draw.number(0.3, 6)))
# ask:
_answers = _hidden.ask(multipliers, _cases, forbidden=(_package,))
# judge:
_right = _hidden.ask(_package, _cases)
_hidden.grade(_answers, _right, values=4, gradients=1)
### END HIDDEN TESTS
# %% [markdown]
# ## Exercise 3 · Weigh the keys (6 points: values 4, gradients 1, inputs left alone 1)
#
# `keys` has the shape $(B, F \cdot n, D)$ and is **frame-major**: first the $n$ tokens of frame 0, then those of frame 1, and so on. The first of
# each frame's $n$ tokens is its CLS token. `m` has the shape $(B, F)$. Return new keys of the same shape: every patch multiplied by the $m$ of its
# frame, every CLS token as it was. $n$ is not given; it follows from the shapes. Here gradients flow to both, `keys` and `m`.
# %% solution weigh-keys
def weigh_keys(keys, m):
    ### BEGIN SOLUTION
    B, N, D = keys.shape
    F = m.shape[1]
    frames = keys.reshape(B, F, N // F, D)  # (B, F·n, D) -> (B, F, n, D)
    weighed = m[:, :, None, None] * frames[:, :, 1:]
    return torch.cat([frames[:, :, :1], weighed], dim=2).reshape(B, N, D)
    ### END SOLUTION


# %%
checks.a5.weigh_keys(weigh_keys)
# %% test weigh-keys-test 6
# Exercise 3 is graded here: values 4 points, gradients 1, inputs left alone 1.
### BEGIN HIDDEN TESTS
import torch

from uniadapter_edu.attention import scale_patch_keys as _package
from uniadapter_edu.grading import hidden as _hidden

_draw, _cases = _hidden.Cases("weigh-keys"), []
for _B in (1, 2, _draw.size(2, 4)):
    (_F, _n, _D), _dtype = _draw.sizes(3, 2, 7), _draw.dtype()
    _cases.append(_draw.case(_draw.tensor(_B, _F * _n, _D, dtype=_dtype), _draw.tensor(_B, _F, dtype=_dtype)))
_cases.append(_draw.case(_draw.tensor(2, 6, 3), _draw.tensor(2, 1)))  # a clip of one frame
_cases.append(_draw.case(_draw.tensor(2, 4, 3), _draw.tensor(2, 4)))  # frames of nothing but a CLS token
# ask:
_answers = _hidden.ask(weigh_keys, _cases, forbidden=(_package,))
# judge:
def _reference(keys, m):
    n = keys.shape[1] // m.shape[1]
    is_patch = (torch.arange(keys.shape[1]) % n > 0).to(keys.dtype)
    factor = m.repeat_interleave(n, dim=1) * is_patch + (1 - is_patch)
    return keys * factor[:, :, None]


_hidden.grade(_answers, _hidden.ask(_reference, _cases), values=4, gradients=1, inputs=1)
### END HIDDEN TESTS
# %% [markdown]
# ## Reflection (4 points, graded by a person)
#
# In 100 to 200 words: (a) why are the keys weighed, and not the values? What would a multiplier on the values do instead? (b) Cosines of the frames of
# one clip differ by 0.1. How large do the multipliers with $\tau = 4$ differ, about, and what follows for what this attention can do at all?
#
# **Rubric** (a) what the one and the other change in the output: 2. (b) the size, with its calculation: 1; a conclusion about what the attention can
# and cannot do with it: 1.
# %% [markdown] answer reflection 4
# ### BEGIN SOLUTION
# (a) The key decides how much of a token is read: scaling it scales its attention score, and the softmax shares out the rest. Scaling the value
# would change how large the answer is that is read, without looking elsewhere. (b) softmax of 0.1/4 = 0.025 gives multipliers that differ by
# about 2.5 percent. That is a mild preference: a frame is never left out. With a score of size s, a key scaled by 1.025 moves it by 0.025 s.
# ### END SOLUTION
