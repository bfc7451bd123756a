"""What the notebooks' exercises call: each check is an assertion whose message names the mistake.

An answer that is still `...` is left open: the check says so and passes, so that a notebook runs from top to bottom before
its exercises are done. Any other answer is right, or raises AssertionError.
"""

import math
from collections.abc import Callable

import torch

from uniadapter_edu._answers import is_open as _open
from uniadapter_edu._answers import right as _right
from uniadapter_edu.adapter import UniAdapter
from uniadapter_edu.assignments import a1, a2, a3, a4, a5, a6  # noqa: F401 (the assignments call checks.a1.adapter(…))
from uniadapter_edu.config import UniAdapterConfig

# ------------------------------------------------------------------------------------------------------ 00, quickstart


def target_caption(caption: str) -> None:
    """The new world's way of describing a small fox on a green background."""
    if _open(caption):
        return
    said = caption.lower().replace(",", " ").split()
    for old, new in {"small": "tiny", "green": "emerald"}.items():
        assert old not in said, f"the new world has another word for {old}."
        assert new in said, f"{new!r} is missing."
    assert "fox" in said, "it does not say what is to be seen."
    expected = ("fox, tiny, emerald", "emerald canvas, tiny fox", "just one tiny fox upon emerald")
    same = [" ".join(e.replace(",", " ").split()) for e in expected]
    assert " ".join(said) in same, f"all words are there; the order is not. One of: {'; '.join(expected)}."
    _right("Now search with it.")


def first_share(share: Callable[[list, list], float]) -> None:
    """``share(found, right)``: R@1, the part of the queries whose first picture is the right one."""
    found, right = [[4, 1], [2, 0], [7, 3], [5, 9]], [4, 0, 3, 5]
    if _open(given := share(found, right)):
        return
    mistakes = {1.0: "that counts pictures anywhere among those found (here R@2)", 2: "divide by the number of queries"}
    why = mistakes.get(given, "expected 0.5: the first and the last query have their picture first")
    assert given == 0.5, f"share is {given}: {why}."
    _right("Two of four queries find their picture first.")


# -------------------------------------------------------------------------------------------------------- 01, meet BLIP


def recall_at_k(recall: Callable[[torch.Tensor, int], float]) -> None:
    """``recall(similarity, k)``: the part of rows i whose entry (i, i) is among the k largest of its row."""
    s = torch.tensor([[0.9, 0.1, 0.2], [0.7, 0.6, 0.5], [0.8, 0.3, 0.25]])
    if _open(recall(s, 1)):
        return
    for k, right in ((1, 1 / 3), (2, 2 / 3), (3, 1.0)):
        given = float(recall(s, k))
        by_column = (s.argsort(0, descending=True)[:k] == torch.arange(3)).any(0).float().mean().item()
        mistakes = {round(3 * right, 4): "divide by the number of queries"}
        mistakes[round(by_column, 4)] = "that ranks the columns; a row is a query"
        why = mistakes.get(round(given, 4), f"expected {right:.3f}")
        assert abs(given - right) < 1e-4, f"recall(similarity, {k}) is {given:.3f}: {why}."
    _right("And at k = 3, all there is, nothing can be missed.")


def two_stage(rank: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]) -> None:
    """``rank(s, logit, k)``: the k nearest pictures of one sentence by s, ordered by s + logit."""
    s, logit = torch.tensor([0.9, 0.1, 0.8, 0.5, 0.6]), torch.tensor([-1.0, 9.0, 0.0, 3.0, 0.1])
    if _open(rank(s, logit, 3)):
        return
    given, k = torch.as_tensor(rank(s, logit, 3)).tolist(), 3
    order = (s + logit).argsort(descending=True)
    mistakes = {
        tuple(order[:k].tolist()): "it matched every picture: take the k nearest by s first",
        tuple(s.argsort(descending=True)[:k].tolist()): "that is the first stage alone",
        (4, 2, 0): "order them by s + logit, not by the logit alone",
        (1, 2, 0): "these are places among the candidates, not the pictures' own numbers",
    }
    assert given == [2, 4, 0], f"rank gives {given}: {mistakes.get(tuple(given), 'expected [2, 4, 0]')}."
    _right("Picture 1 has the best logit, and was never looked at: the first stage decides what the second may see.")


# ------------------------------------------------------------------------------------------- 02, freeze the backbone


def training_bytes(count: Callable[[int], int]) -> None:
    """``count(trainable)``: bytes of gradients and Adam's two running means, 4 bytes a number: 12 for each parameter."""
    if _open(count(1)):
        return
    given, right = count(1000), 12_000
    mistakes = {
        3000: "these are numbers; a float32 number takes 4 bytes",
        4000: "that is the gradient alone; Adam keeps two numbers for each parameter",
        8000: "that is one of Adam's two running means short, or without the gradient",
        16_000: "the weights are there whether they train or not; leave them out",
    }
    assert given == right, f"count(1000) is {given}: {mistakes.get(given, f'expected {right}')}."
    _right("Three numbers of 4 bytes for each parameter that trains, none for one that is frozen.")


def only_layernorms(freeze: Callable[[torch.nn.Module], object]) -> None:
    """``freeze(model)`` leaves exactly the LayerNorms trainable, whatever they are called."""
    # The first is a LayerNorm whose name does not say so, the second a Linear whose name lies.
    parts = {"first": torch.nn.LayerNorm(4), "norm_like": torch.nn.Linear(4, 4), "norm": torch.nn.LayerNorm(4)}
    model = torch.nn.ModuleDict(parts)
    if _open(freeze(model)):
        return
    assert not any(p.requires_grad for p in parts["norm_like"].parameters()), (
        "a Linear still trains: choose by the module's class, not by its name."
    )
    for name in ("first", "norm"):
        trains = [p.requires_grad for p in parts[name].parameters()]
        assert any(trains), f"the LayerNorm `{name}` is frozen: choose by the module's class, not by its name."
        assert all(trains), f"the LayerNorm `{name}` has a weight and a bias; only one of them trains."
    _right("The LayerNorms train, and nothing else.")


# ------------------------------------------------------------------------------------------- 03, one bottleneck adapter


def bottleneck_count(count: Callable[[int, int], int]) -> None:
    """``count(D, r)``: the parameters of one bottleneck with its LayerNorm: 2Dr + r + 3D."""
    if _open(count(192, 8)):
        return
    D, r = 100, 7  # sizes at which no two mistakes give the same number
    given, right = count(D, r), 2 * D * r + r + 3 * D
    mistakes = {
        right - 2 * D: "the LayerNorm has a weight and a bias too, D numbers each",
        right - r: "the down-projection has a bias of r numbers",
        right - D: "the up-projection has a bias of D numbers",
        right - r - D: "both linear maps have a bias: r numbers after the down, D after the up",
        2 * D * r: "that is the two matrices alone, without biases and LayerNorm",
        D * D + D: "that is one full D x D map; a bottleneck has two thin ones",
    }
    assert given == right, f"count({D}, {r}) is {given}: {mistakes.get(given, f'expected {right}')}."
    _right("So the count grows with D · r, not with D · D.")


def identity_start(start: Callable[[UniAdapter], object]) -> None:
    """``start(adapter)`` sets an adapter so that it adds nothing at first, and can learn all the same."""
    adapter, h = (
        UniAdapter(6, UniAdapterConfig(bottleneck=3, modalities=("vision",), cross_reuses_text_up=False)),
        _h(6),
    )
    for p in adapter.parameters():
        torch.nn.init.uniform_(p, 0.5, 1.0)
    if _open(start(adapter)):
        return
    out = adapter.vision(h)
    assert (adapter.up["vision"].weight == 0).all(), "the weight of the up-projection is not zero at the start."
    assert (adapter.up["vision"].bias == 0).all(), "the bias of the up-projection is not zero: it is added as it is."
    assert (out == 0).all(), "the adapter still adds something."
    out.sum().backward()
    learns = adapter.up["vision"].weight.grad.abs().sum() > 0
    assert learns, (
        "z is zero as well, so the up-projection gets no gradient and would stay at zero: leave the down alone."
    )
    _right("It adds nothing, and the first step can already move the up-projection.")


def same_first_step(learning_rate: float, scale: float, other_rate: float, other_scale: float) -> None:
    """The learning rate with which ``scale`` makes as large a first step as ``other_scale`` does with ``other_rate``."""
    if _open(learning_rate):
        return
    effect, wanted = scale * learning_rate, other_scale * other_rate
    assert effect < 1.001 * wanted, f"scale x learning rate is {effect:.4g}, more than {wanted:.4g}: too large a step."
    assert effect > 0.999 * wanted, f"scale x learning rate is {effect:.4g}, less than {wanted:.4g}: too small a step."
    _right(f"Both products are {wanted:.4g}.")


# ------------------------------------------------------------------------------------------- 04, unimodal adapters


def text_branch_changes(pictures: bool, sentences: bool, pair: bool) -> None:
    """Which cosines a text branch can change: of two pictures no, of two sentences yes, of one of each yes."""
    if any(_open(answer) for answer in (pictures, sentences, pair)):
        return
    asked = (
        ("two pictures", pictures, False, "pictures never pass the text encoder: both vectors are as before"),
        ("two sentences", sentences, True, "both vectors come from the text encoder, where the adapters are"),
        ("a picture and a sentence", pair, True, "one of the two vectors has changed, and that is enough"),
    )
    for what, given, right, why in asked:
        assert given is right, f"{given!r} is not right for the cosine of {what}: {why}."
    _right("It moves sentences, and only towards or away from where the pictures are.")


def post_norm_layer(layer: Callable) -> None:
    """``layer(x, attend, norm_1, ffn, norm_2, A)``: a = norm_1(x + attend(x)), then norm_2(a + ffn(a)) + A(a)."""
    x, (w_attend, w_ffn, w_A) = _h(6), torch.linspace(-3, 3, 108).view(3, 6, 6).sin()
    norm_1, norm_2 = torch.nn.LayerNorm(6), torch.nn.LayerNorm(6)
    norm_1.weight.data, norm_2.weight.data = torch.linspace(0.5, 2, 6), torch.linspace(2, 1, 6)

    def attend(h):
        return h @ w_attend

    def ffn(h):
        return torch.relu(h @ w_ffn)

    def A(h):
        return torch.relu(h @ w_A)

    if _open(given := layer(x, attend, norm_1, ffn, norm_2, A)):
        return
    a, u = norm_1(x + attend(x)), x + attend(norm_1(x))
    f, alone, exchanged = norm_2(a + ffn(a)), norm_1(attend(x)), norm_2(x + attend(x))
    mistakes = {
        "the adapter is added in front of the last LayerNorm, which rescales it": norm_2(a + ffn(a) + A(a)),
        "the adapter reads x, expected a: behind self-attention": f + A(x),
        "the adapter reads what the layer gives, expected a": f + A(f),
        "the adapter is missing": f,
        "the residual around self-attention is missing": norm_2(alone + ffn(alone)) + A(alone),
        "the residual around the feed-forward part is missing": norm_2(ffn(a)) + A(a),
        "that is a pre-norm layer: LayerNorm stands in front of the parts": u + ffn(norm_2(u)) + A(u),
        "the two LayerNorms are exchanged": norm_1(exchanged + ffn(exchanged)) + A(exchanged),
    }
    found = next((why for why, wrong in mistakes.items() if torch.allclose(given, wrong)), "that is another layer")
    assert torch.allclose(given, f + A(a)), f"{found}."
    _right("Nothing rescales what the adapter adds.")


def unimodal_count(count: Callable[[int, int, int, int], int]) -> None:
    """``count(D, r, blocks, layers)``: max(blocks, layers) · (2D + Dr + r) + (blocks + layers) · (rD + D)."""
    if _open(count(192, 8, 4, 3)):
        return
    D, r = 100, 7
    for blocks, layers in ((4, 3), (2, 5)):
        deep, one, up = max(blocks, layers), 2 * D + D * r + r, r * D + D
        right = deep * one + (blocks + layers) * up
        mistakes = {
            (blocks + layers) * (one + up): "LayerNorm and down-projection of a layer index serve both encoders",
            deep * (one + 2 * up): "an encoder that is not deep enough has no up-projection there",
            blocks * (one + 2 * up): "an encoder that is not deep enough has no up-projection there",
            min(blocks, layers) * one + (blocks + layers) * up: "the deeper encoder's upper layers have adapters, too",
            right - deep * 2 * D: "each layer index has a LayerNorm of 2D numbers",
            right - deep * r - (blocks + layers) * D: "linear maps have biases: r numbers after a down, D after an up",
        }
        given = count(D, r, blocks, layers)
        why = mistakes.get(given, f"expected {right}")
        assert given == right, f"count({D}, {r}, blocks={blocks}, layers={layers}) is {given}: {why}."
    _right("Two branches cost less than twice one: the questions are shared.")


# ------------------------------------------------------------------------------------------- 05, cross-modal adapters


def multimodal_reads(text: str, cross: str) -> None:
    """Which state of the multimodal layer A_text and A_cross read: "a" and "c"."""
    if _open(text) or _open(cross):
        return
    mistakes = {
        "x": "is what enters the layer, before self-attention: no adapter reads it",
        "e": "are the picture's tokens: the layer's adapters read the text's states",
        "a": "is the text before cross-attention: nothing in it was found in this layer's look at the picture",
        "c": "is the text behind cross-attention: what is read there changes with the picture",
    }
    for name, given, right in (("A_text", text, "a"), ("A_cross", cross, "c")):
        why = mistakes.get(given, 'is none of "x", "a", "c" and "e"')
        assert given == right, f"{name} does not read {given!r}. That {why}."
    _right("The query residual is taken before the look at the picture, the cross branch reads what was found.")


def cross_branch(branch: Callable) -> None:
    """``branch(z, own, text, s)``: s · ( W_cross z + b_cross + W_text z + b_text ), own and text being `nn.Linear`."""
    z, s = _h(3), 0.5
    own, text = torch.nn.Linear(3, 6), torch.nn.Linear(3, 6)
    for k, p in enumerate([*own.parameters(), *text.parameters()], 1):
        torch.nn.init.constant_(p, 0.3 * k)
    given = branch(z, own, text, s)
    if _open(given):
        return
    both = own(z) + text(z)
    mistakes = {
        "the text up-projection is missing": s * own(z),
        "the cross branch's own up-projection is missing": s * text(z),
        "the scale is missing": both,
        "the scale multiplies only the own part": s * own(z) + text(z),
        "the scale multiplies only the text part": own(z) + s * text(z),
        "the bias of the text up-projection is missing": s * (both - text.bias),
        "the bias of the own up-projection is missing": s * (both - own.bias),
        "both biases are missing": s * (both - own.bias - text.bias),
    }
    found = [why for why, wrong in mistakes.items() if given.shape == wrong.shape and torch.allclose(given, wrong)]
    assert given.shape == both.shape, f"its shape is {tuple(given.shape)}, expected {tuple(both.shape)}."
    assert torch.allclose(given, s * both), f"{found[0] if found else 'that is another sum'}."
    _right("Two up-projections answer the same questions.")


def gain_at_zero(factor: float, eps: float) -> None:
    """By which factor a LayerNorm with this eps enlarges a gradient where its input is zero: 1/sqrt(eps)."""
    if _open(factor):
        return
    right = eps**-0.5
    mistakes = {1 / eps: "that is 1/eps; the variance and eps stand below a root", 316.0: "that is for eps = 1e-5"}
    why = next((w for wrong, w in mistakes.items() if abs(factor / wrong - 1) < 0.01), f"expected {right:.3g}")
    assert abs(factor / right - 1) < 0.01, f"{factor:g} is not the factor: {why}."
    _right("The smaller eps is, the harder it is to start softly.")


# ------------------------------------------------------------------------------------------------- 06, weight sharing


def sharing_count(count: Callable[[int, int, int, int], int]) -> None:
    """``count(D, r, downs, ups)``: the parameters of one layer: 2D + downs · (Dr + r) + ups · (Dr + D)."""
    if _open(count(192, 8, 1, 3)):
        return
    D, r = 100, 7
    for downs, ups in ((2, 3), (4, 1), (3, 3)):
        right = 2 * D + downs * (D * r + r) + ups * (r * D + D)
        mistakes = {
            right - 2 * D: "the LayerNorm is missing, 2D numbers",
            right + 4 * D: "there is one LayerNorm for all branches, not three",
            right - downs * r: "each down-projection has a bias of r numbers",
            right - ups * D: "each up-projection has a bias of D numbers",
            right - downs * r - ups * D: "linear maps have biases: r numbers after a down, D after an up",
            right + (ups - downs) * (r - D): "the biases are exchanged: a down has r, an up D",
        }
        given = count(D, r, downs, ups)
        why = mistakes.get(given, f"expected {right}")
        assert given == right, f"count({D}, {r}, downs={downs}, ups={ups}) is {given}: {why}."
    _right("Each map that is shared by three saves two of it.")


def tied_downs(tie: Callable[[torch.nn.ModuleDict], object]) -> None:
    """``tie(branches)`` makes vision, text and cross use vision's down-projection, as one object."""
    names = ("vision", "text", "cross")
    parts = {name: {"down": torch.nn.Linear(4, 2), "up": torch.nn.Linear(2, 4)} for name in names}
    branches = torch.nn.ModuleDict({name: torch.nn.ModuleDict(part) for name, part in parts.items()})
    if _open(tie(branches)):
        return
    kept, shared = parts["vision"]["down"], branches["vision"].down
    assert shared is kept, "vision's down-projection was replaced; the others should take it over as it is."
    for name in ("text", "cross"):
        down = branches[name].down
        equal = torch.equal(down.weight, shared.weight)
        assert down is shared or not equal, f"{name}'s numbers are equal, but it is a copy: train one, and they part."
        assert down is shared, f"{name} still has a down-projection of its own."
        assert branches[name].up is parts[name]["up"], f"{name}'s up-projection was changed; only the down is shared."
    _right("vision.down is text.down is cross.down.")


def shared_gradient(gradient) -> None:
    """The gradient of the shared down-projection in the notebook's table, with c = (0, -3)."""
    if _open(gradient):
        return
    given = torch.as_tensor(gradient, dtype=torch.float).flatten().tolist()
    mistakes = {
        (4.0, 6.0): "for c, z is negative, so ReLU passes nothing on, and no gradient back",
        (4.0, 0.0): "for c, z is negative, so ReLU passes nothing on, and no gradient back",
        (4.0, 2.0): "that is the table's, with c = (0, 1)",
        (0.0, 0.0): "the cross branch gives nothing, but vision and text still do",
    }
    why = mistakes.get(tuple(given), "add the rows of vision and text to what is left of cross")
    assert given == [4.0, 3.0], f"{given} is not the gradient: {why}."
    _right("The cross branch is silent for this token, and leaves the gradient to the other two.")


# --------------------------------------------------------------------------------------- 07, train on a small subset


def chance_loss(loss: float, batch: int) -> None:
    """The contrastive loss of a model to which all pairs of a batch look alike: ln B."""
    if _open(loss):
        return
    right = math.log(batch)
    mistakes = {
        1 / batch: "that is the probability of the right caption; the loss is minus its logarithm",
        -right: "a loss is minus the logarithm of a probability, so it is not negative",
        math.log2(batch): "that is the logarithm to base 2",
        2 * right: "the loss is the mean of both directions, not their sum",
        0.0: "that is the loss of a model that is always right, and sure of it",
    }
    why = next((why for wrong, why in mistakes.items() if abs(loss - wrong) < 0.01), f"expected {right:.3f}")
    assert abs(loss - right) < 0.01, f"{loss:g} is not the loss at chance: {why}."
    _right("So that is where an untrained model's loss begins, and a larger batch begins higher.")


def contrastive(loss: Callable[[torch.Tensor, float], torch.Tensor]) -> None:
    """``loss(s, temperature)``: the mean of cross-entropy over the rows and over the columns of s / temperature."""
    s, tau = torch.tensor([[0.9, 0.1, 0.2], [0.7, 0.6, 0.5], [-0.8, 0.3, 0.25]]), 0.5
    if _open(given := loss(s, tau)):
        return

    def rows(x):
        return -x.log_softmax(dim=1).diagonal().mean()

    right = (rows(s / tau) + rows(s.T / tau)) / 2
    mistakes = {
        "that is one direction: pictures must find captions, and captions pictures": rows(s / tau),
        "that is one direction: captions must find pictures, and pictures captions": rows(s.T / tau),
        "the temperature is missing": (rows(s) + rows(s.T)) / 2,
        "divide by the temperature, do not multiply": (rows(s * tau) + rows(s.T * tau)) / 2,
        "take the mean of the two directions, not their sum": 2 * right,
        "take the mean over the batch, not the sum": len(s) * right,
        "a loss is minus the logarithm": -right,
    }
    given = torch.as_tensor(given)
    assert given.ndim == 0, f"its shape is {tuple(given.shape)}, expected one number."
    found = next((why for why, x in mistakes.items() if torch.isclose(given, x)), f"expected {right:.4f}")
    assert torch.isclose(given, right), f"the loss is {given:.4f}: {found}."
    _right("Each row and each column is a question with B answers.")


def draw_probabilities(draw: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """``draw(s, same)``: softmax over the texts of each picture, 0 where text and picture belong together."""
    s = torch.tensor([[5.0, 1.0, 2.0, 1.0], [0.0, 4.0, 1.0, 3.0]])
    same = torch.tensor([[True, False, False, False], [False, True, False, True]])
    if _open(given := draw(s, same)):
        return
    right = s.masked_fill(same, -torch.inf).softmax(dim=1)
    mistakes = {
        "a text that belongs to the picture can be drawn: it is no mismatch": s.softmax(dim=1),
        "a score of 0 can be drawn, for exp(0) is 1: give what belongs together minus infinity": (
            s.masked_fill(same, 0).softmax(dim=1)
        ),
        "what is left after leaving out the right texts has to sum to 1": s.softmax(dim=1).masked_fill(same, 0),
        "a row is a picture: the softmax goes over its texts": s.masked_fill(same, -torch.inf).softmax(dim=0),
        "all mismatches are equally probable": (~same).float() / (~same).sum(1, keepdim=True),
    }
    given = torch.as_tensor(given)
    assert given.shape == s.shape, f"its shape is {tuple(given.shape)}, expected {tuple(s.shape)}."
    found = next((why for why, x in mistakes.items() if torch.allclose(given, x)), "expected a softmax over each row")
    assert torch.allclose(given, right), f"{found}."
    _right("The more a wrong text looks like the right one, the more often it is drawn.")


# ------------------------------------------------------------------------------------------------ 08, video and frames


def token_index(index: Callable[[int, int, int], int]) -> None:
    """``index(f, p, n)``: the place of patch p of frame f among frame-major tokens, n a frame: f · n + 1 + p."""
    if _open(index(0, 0, 37)):
        return
    f, p, n = 3, 5, 37
    given, right = index(f, p, n), f * n + 1 + p
    mistakes = {
        f * n + p: "each frame begins with its CLS",
        (f + 1) * n + 1 + p: "frames are counted from 0: f frames stand in front",
        f * (n + 1) + 1 + p: "n counts the CLS already",
        p * n + f: "that is patch-major; a frame's tokens stand together",
        (f - 1) * n + 1 + p: "frames are counted from 0, not from 1",
    }
    why = mistakes.get(given, f"expected {right}")
    assert given == right, f"index_of(f={f}, p={p}, n={n}) is {given}: {why}."
    _right("So a frame's tokens are one slice, from f · n to (f + 1) · n.")


def frame_multipliers(multipliers: Callable[[torch.Tensor, float], torch.Tensor]) -> None:
    """``multipliers(w, temperature)``: F · softmax over the frames of w / temperature."""
    w, temperature = torch.tensor([[0.9, 0.1, -0.3], [0.2, 0.4, 0.6]]), 0.5
    if _open(given := multipliers(w, temperature)):
        return
    right = 3 * (w / temperature).softmax(dim=1)
    mistakes = {
        "the factor F is missing, so their mean is not 1": right / 3,
        "the factor is the number of frames, not of clips": right * 2 / 3,
        "that softmax goes over the clips; a clip's frames compete with each other": 3
        * (w / temperature).softmax(dim=0),
        "the temperature is missing": 3 * w.softmax(dim=1),
        "divide by the temperature, do not multiply": 3 * (w * temperature).softmax(dim=1),
    }
    assert given.shape == w.shape, f"its shape is {tuple(given.shape)}, expected {tuple(w.shape)}."
    found = next((why for why, x in mistakes.items() if torch.allclose(given, x)), "expected F times a softmax")
    assert torch.allclose(given, right), f"{found}."
    _right("Their mean over the frames of a clip is 1.")


def largest_ratio(ratio: float, temperature: float) -> None:
    """How many times as large as another one a multiplier can be, for cosines from -1 to 1: exp(2 / temperature)."""
    if _open(ratio):
        return
    right = math.exp(2 / temperature)
    mistakes = {
        math.exp(1 / temperature): "two cosines can differ by 2, one at 1 and one at -1",
        2 / temperature: "that is the difference of the exponents; the ratio is e to that power",
        math.exp(0.5): "that is for temperature 4",
        math.exp(2 * temperature): "divide by the temperature, do not multiply",
    }
    why = next((why for wrong, why in mistakes.items() if abs(ratio - wrong) < 0.01), f"expected {right:.2f}")
    assert abs(ratio - right) < 0.01, f"{ratio:g} is not the largest ratio: {why}."
    _right("At the paper's temperature of 4 it is 1.65.")


# ------------------------------------------------------------------------------------------ 09, questions and captions


def looked_at(question_encoder: str, answer_decoder: str, caption_decoder: str) -> None:
    """What each looks at by cross-attention: "e", the picture's tokens, or "q", the question's states."""
    given = {
        "question encoder": question_encoder,
        "answer decoder": answer_decoder,
        "caption decoder": caption_decoder,
    }
    if any(_open(answer) for answer in given.values()):
        return
    reasons = {
        "question encoder": ("e", "its words look at the picture; q is what comes of it"),
        "answer decoder": ("q", "it never sees the picture itself, only what the question has found in it"),
        "caption decoder": ("e", "nobody asks, so there is no q"),
    }
    for tower, (right, why) in reasons.items():
        assert given[tower] == right, f"the {tower} does not look at {given[tower]!r}: {why}."
    _right("What the question has not looked for, no answer can say.")


def next_token_loss(loss: Callable) -> None:
    """``loss(logits, ids, mask)``: -log p of each text, (B,): summed over its tokens but the first, without padding."""
    logits = torch.linspace(0, 9, 2 * 4 * 5).view(2, 4, 5).sin()
    ids, mask = torch.tensor([[4, 1, 2, 3], [4, 2, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    if _open(given := loss(logits, ids, mask)):
        return

    def losses(shift: int) -> torch.Tensor:
        said = logits[:, : 4 - shift].log_softmax(-1)
        return -said.gather(-1, ids[:, shift:, None])[..., 0]  # (B, 4 - shift)

    right = (losses(1) * mask[:, 1:]).sum(1)
    mistakes = {
        "the logits after a token are about the NEXT one: shift ids and logits by one": (losses(0) * mask).sum(1),
        "that trains the token after the next: shift once, not twice": (losses(2) * mask[:, 2:]).sum(1),
        "padding was counted: leave out where the mask of the next token is 0": losses(1).sum(1),
        "sum over a text's tokens, without dividing: log p of the whole text is wanted": right / mask[:, 1:].sum(1),
        "minus the logarithm": -right,
    }
    assert torch.is_tensor(given) and given.shape == (2,), "one number for each text: sum over its tokens, shape (B,)."
    found = next(
        (why for why, wrong in mistakes.items() if torch.allclose(given, wrong)), "expected -log p of each text"
    )
    assert torch.allclose(given, right), f"{found}."
    _right("The first token is never a target, and padding is none either.")


def greedy_and_best(greedy: str, best: str, ranked: str) -> None:
    """What three ways of answering say of the same probabilities: "hot dog", "violin", and of two candidates "hot pepper"."""
    if any(_open(answer) for answer in (greedy, best, ranked)):
        return
    probabilities = {"hot dog": 0.25, "hot pepper": 0.15, "hot springs": 0.1, "violin": 0.36, "fox": 0.1}
    asked = {
        "greedy": (greedy, "hot dog", "take the likeliest first word, then the likeliest that follows it"),
        "best": (best, "violin", "multiply along each answer and compare the products"),
        "ranked": (ranked, "hot pepper", "only the two candidates count, and each by all of its words"),
    }
    for name, (given, right, why) in asked.items():
        p = probabilities.get(given)
        chance = f" has probability {p:g}" if p else ""
        assert given == right, f"{name} is not {given!r}, which{chance or ' is no answer here'}: {why}."
    _right("One model, three answers: a score belongs to the way in which it was found.")


# --------------------------------------------------------------------------------------------- 10, compare and ablate


def gain_recovered(recovered: Callable[[list, list, list], float]) -> None:
    """``recovered(scores, frozen, full)``: lists with a score a seed -> the share of the gain, of the means."""
    scores, frozen, full = [50.0, 70.0], [20.0], [70.0, 80.0, 90.0]
    if _open(given := recovered(scores, frozen, full)):
        return
    mistakes = {
        60 / 80: "that is the score over full fine-tuning's; a model that learned nothing would get a share, too",
        40 / 60 * 100: "give a share of 1, not percent",
        60
        / 60: "that leaves the frozen model's score in the numerator: below the line stands full minus frozen, above it score minus frozen",
        40.0: "that is the gain itself; divide it by full fine-tuning's",
        50 / 60: "the mean of the scores, not the best of them",
        30 / 60: "the mean of the scores, not the first of them",
        40 / 50: "the mean of full fine-tuning's scores, not the first of them",
        40 / 70: "the mean of full fine-tuning's scores, not the best of them",
    }
    why = next((why for wrong, why in mistakes.items() if abs(given - wrong) < 1e-6), f"expected {40 / 60:.3f}")
    assert abs(given - 40 / 60) < 1e-6, f"recovered is {given:.3f}: {why}."
    _right("(60 - 20) / (80 - 20): two thirds of what can be had.")


def chosen_rate(choose: Callable[[dict], float]) -> None:
    """``choose(tried)``: learning rate -> (validation score, test score); the rate to train with."""
    tried = {1e-3: (0.66, 0.69), 3e-3: (0.68, 0.64), 1e-2: (0.52, 0.70), 3e-2: (0.10, 0.12)}
    if _open(given := choose(tried)):
        return
    mistakes = {
        1e-2: "it has the best test score, and the test scenes must not take part in any choice",
        3e-2: "that is the largest rate, not the best",
        0.68: "give the learning rate, not its score",
        1e-3: "that is best on both together; the test scenes must not take part in any choice",
    }
    assert given == 3e-3, f"{given} is not the rate: {mistakes.get(given, 'take the best on validation scenes')}."
    _right("Its test score is not the best, and that is as it should be: nobody looked.")


def what_can_be_said(verdicts: dict[str, str]) -> None:
    """For A against B with three scores each: "A", "B" or "open", by the notebook's rule."""
    if _open(verdicts) or any(_open(verdict) for verdict in verdicts.values()):
        return
    pairs = {
        "first": ("A", "with every seed, A is 10 above B"),
        "second": ("open", "the differences are -6, 5 and 7: another seed could turn their mean round"),
        "third": ("open", "one seed each: there is no spread, so nothing to compare the difference with"),
    }
    assert set(verdicts) == set(pairs), f"expected verdicts for {', '.join(pairs)}."
    for name, (right, why) in pairs.items():
        assert verdicts[name] == right, f"the {name} is not {verdicts[name]!r}: {why}."
    _right("An open question is a result, too: it says what more seeds would have to settle.")


# ---------------------------------------------------------------------------------------------------- 11, a real BLIP


def image_tokens(count: Callable[[int, int], int]) -> None:
    """``count(size, patch)``: tokens of a square picture of ``size`` pixels: its patches, and one for the whole."""
    if _open(count(96, 16)):
        return
    for size, patch in ((96, 16), (384, 16), (224, 32)):
        side = size // patch
        given, right = count(size, patch), side * side + 1
        mistakes = {
            side * side: "there is one more token, for the whole picture",
            side + 1: "that is one row of patches; a picture has as many rows as columns",
            size * size + 1: "that counts pixels; a token is a patch",
        }
        assert given == right, f"count({size}, {patch}) is {given}: {mistakes.get(given, f'expected {right}')}."
    _right("Four times as many pixels a side are sixteen times as many patches.")


def caption_cleaner(clean: Callable[[str], str]) -> None:
    """``clean(text)``: lower case, without . ! " ( ) * # : ; ~, one space between words, at most 30 words."""
    if _open(clean("A dog.")):
        return
    for text, right, why in (
        ("A Dog", "a dog", "everything is lower case"),
        ("a dog.", "a dog", "the full stop goes, and no space is left at the end"),
        ("a (big) dog; it runs!", "a big dog it runs", 'all of . ! " ( ) * # : ; ~ go'),
        ("a  dog", "a dog", "one space between words"),
        ("a.dog", "a dog", "a space takes the place of what goes, or two words become one"),
        ("a man's well-known dog, old", "a man's well-known dog, old", "apostrophes, hyphens and commas stay"),
        ("w " * 31, ("w " * 30).strip(), "at most 30 words are kept"),
    ):
        assert (given := clean(text)) == right, f"clean({text[:24]!r}) is {given[:24]!r}: {why}."
    _right("The checkpoint has read its captions in this form, so it should go on reading them so.")


def chance(guess: Callable[[int, int], tuple[float, float]]) -> None:
    """``guess(pictures, captions)``: R@1 of a random order, text to image and image to text, ``captions`` a picture."""
    if _open(guess(1000, 5)):
        return
    for pictures, captions in ((1000, 5), (10, 2)):
        given, right = tuple(guess(pictures, captions)), 1 / pictures
        mistakes = {
            (right, captions * right): "among all captions the right ones are one in as many as there are pictures",
            (right, right / captions): "every caption of the picture is a right answer, not just one",
            (right / captions, right): "the gallery of the first holds pictures, not captions",
        }
        close = all(abs(g - right) < 1e-9 for g in given)
        why = next((w for wrong, w in mistakes.items() if all(abs(g - m) < 1e-9 for g, m in zip(given, wrong))), "")
        assert close, f"guess({pictures}, {captions}) is {given}: {why or 'how many of the gallery are right?'}."
    _right("Both are one in the number of pictures: more captions are more right answers, and more wrong ones.")


# ------------------------------------------------------------------------------------------- A, the paper and its code


def trainable_by_name(rule: Callable[[str], bool]) -> None:
    """``rule(name)`` trains every adapter, and nothing within a module whose own name ends in ``_m``."""
    names = {
        "adapters.0.down_proj.weight": True,
        "adapters.0.adapter_layer_norm_cross_modal.weight": True,
        "adapters.0.multi_up_proj.bias": True,
        "text_encoder.encoder.video_key_adapter.scale": True,
        "adapters_m.0.down_proj.weight": False,
        "adapters_m.0.adapter_layer_norm_cross_modal.weight": False,
        "text_encoder_m.encoder.video_key_adapter.scale": False,
        "copies.text_encoder_m.encoder.video_key_adapter.scale": False,
        "visual_encoder.blocks.0.norm1.weight": False,
    }
    if _open(rule(next(iter(names)))):
        return
    for name, right in names.items():
        why = "belongs to an adapter and should train" if right else "should stay as it is"
        if right and "_m" in name:
            why += ": `_m` inside a longer word is no momentum copy"
        if not right and "_m." in name:
            why += ": it is within a copy, whose name ends in `_m`"
        assert bool(rule(name)) == right, f"{name} {why}."
    _right("Names split at their dots are safer than substrings, and modules are safer than names.")


def frozen_by_accident(count: Callable[[int, int], int]) -> None:
    """``count(D, layers)``: the parameters of one LayerNorm of width D in each layer: 2 · D · layers."""
    if _open(count(768, 12)):
        return
    D, layers = 100, 3
    given, right = count(D, layers), 2 * D * layers
    mistakes = {
        D * layers: "a LayerNorm has a weight and a bias",
        2 * D: "there is one in every layer",
        4 * D * layers: "only LN_x is frozen by accident; LN_in has no `_m` in its name",
    }
    assert given == right, f"count({D}, {layers}) is {given}: {mistakes.get(given, f'expected {right}')}."
    _right(f"At BLIP-base that is {2 * 768 * 12:,}.")


def decay_applied_twice(decay: float) -> None:
    """The decay with which one move does what two with 0.995 do: 0.995²."""
    if _open(decay):
        return
    mistakes = {
        0.995: "that is one move",
        0.995**0.5: "that is the inverse: two moves with it do what one with 0.995 does",
        2 * 0.995 - 1: "close, but shares of what is left multiply",
        1 - 0.005**2: "the parts that are kept multiply, not those that are taken over",
    }
    why = next((w for wrong, w in mistakes.items() if abs(decay - wrong) < 1e-9), "multiply what each move keeps")
    assert abs(decay - 0.995**2) < 1e-9, f"{decay:g} is not it: {why}."
    _right("It remembers about 100 steps where 200 were meant.")


# -------------------------------------------------------------------------------------------- 12, the adapter microscope


def share_of_the_stream(share: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    """``share(h, added)``: for each token the norm of what is added over the norm of h; (B, T, D) twice -> (B, T)."""
    h, added = torch.tensor([[[3.0, 4.0], [0.0, 2.0]]]), torch.tensor([[[0.6, -0.8], [1.0, 0.0]]])
    if _open(given := share(h, added)):
        return
    given, right = torch.as_tensor(given), torch.tensor([[0.2, 0.5]])
    mistakes = {
        "it is upside down: what is added stands above the line": 1 / right,
        "a norm sums squares; this sums the numbers as they are": added.sum(-1) / h.sum(-1),
        "these are squares of norms: take the roots": right**2,
    }
    why = [w for w, wrong in mistakes.items() if given.shape == wrong.shape and torch.allclose(given, wrong)]
    assert given.shape == right.shape, f"the shape is {tuple(given.shape)}: one number a token, from the norms over D."
    assert torch.allclose(given, right), f"{given.tolist()}: {(why or ['expected [[0.2, 0.5]]'])[0]}."
    _right("One number a token, whatever the width.")


def own_is_nearer(nearer: Callable[[list, list], float]) -> None:
    """``nearer(matched, mismatched)``: the part of all comparisons of one with one that the matched cosine wins."""
    matched, mismatched = [0.4, 0.1], [0.3, 0.2, 0.0, -0.5]
    if _open(given := nearer(matched, mismatched)):
        return
    mistakes = {
        6: "divide by the number of comparisons",
        0.25: "count the comparisons that the matched one wins",
        1.0: "comparing the means gives one comparison; there are eight",
    }
    why = mistakes.get(round(float(given), 4), "0.4 wins all four, 0.1 wins two: 6 of 8")
    assert abs(float(given) - 0.75) < 1e-6, f"it is {float(given):g}: {why}."
    _right("0.5 would be chance.")


def unseen_by_contrast(dials) -> None:
    """The two dials of the console that cannot move R@1 of the contrastive stage, as a set of names."""
    if _open(dials):
        return
    named = {str(name) for name in dials}
    assert "text" not in named, "the text branch speaks in the text encoder too, whose features contrast compares."
    assert not named & {"vision", "trained heads", "scale"}, "contrast compares features, and these change features."
    right = {"cross", "query residual"}
    assert named == right, f"{len(named)} named, expected two: what speaks only where a sentence looks at a picture."
    _right("Both speak in the multimodal layers alone, and contrast never gets there.")


# --------------------------------------------------------------------------------------------------- shared by all checks


def _h(D: int) -> torch.Tensor:
    """Hidden states (B, T, D) without two equal numbers."""
    return torch.linspace(-1, 2, 2 * 3 * D).view(2, 3, D).sin()
