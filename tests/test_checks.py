"""Exercises: each check accepts the right answer, leaves dots open, and names the mistake in a wrong one."""

import math
from statistics import mean

import pytest
import torch
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


def tie(branches):
    branches["text"].down = branches["cross"].down = branches["vision"].down


def copy_downs(branches):
    for name in ("text", "cross"):
        branches[name].down.load_state_dict(branches["vision"].down.state_dict())


def tie_text_alone(branches):
    branches["text"].down = branches["vision"].down


def tie_to_text(branches):
    branches["vision"].down = branches["cross"].down = branches["text"].down


def tie_all(branches):
    tie(branches)
    branches["text"].up = branches["cross"].up = branches["vision"].up


def layer_count(D, r, downs, ups):
    return 2 * D + downs * (D * r + r) + ups * (r * D + D)


def cross_sum(z, own, text, s):
    return s * (own(z) + text(z))


def post_norm(x, attend, norm_1, ffn, norm_2, A):
    a = norm_1(x + attend(x))
    return norm_2(a + ffn(a)) + A(a)


def adapter_in_front(x, attend, norm_1, ffn, norm_2, A):
    a = norm_1(x + attend(x))
    return norm_2(a + ffn(a) + A(a))


def adapter_of(state):
    """A post-norm layer whose adapter reads another state than a."""

    def layer(x, attend, norm_1, ffn, norm_2, A):
        a = norm_1(x + attend(x))
        f = norm_2(a + ffn(a))
        return f + A({"x": x, "f": f}[state])

    return layer


def without_residual(part):
    def layer(x, attend, norm_1, ffn, norm_2, A):
        a = norm_1((part != "attention") * x + attend(x))
        return norm_2((part != "ffn") * a + ffn(a)) + A(a)

    return layer


def pre_norm(x, attend, norm_1, ffn, norm_2, A):
    u = x + attend(norm_1(x))
    return u + ffn(norm_2(u)) + A(u)


def norms_exchanged(x, attend, norm_1, ffn, norm_2, A):
    return post_norm(x, attend, norm_2, ffn, norm_1, A)


def unimodal(D, r, blocks, layers):
    return max(blocks, layers) * (2 * D + D * r + r) + (blocks + layers) * (r * D + D)


def cross_entropy(s):
    return -s.log_softmax(dim=1).diagonal().mean()


def contrastive(s, tau):
    return (cross_entropy(s / tau) + cross_entropy(s.T / tau)) / 2


def draw(s, same):
    return s.masked_fill(same, -torch.inf).softmax(dim=1)


def multipliers(w, temperature):
    return w.shape[1] * (w / temperature).softmax(dim=1)


def share(found, right):
    return sum(f[0] == r for f, r in zip(found, right)) / len(right)


def recall(s, k):
    return (s.topk(k).indices == torch.arange(len(s))[:, None]).any(1).float().mean().item()


def rank(s, logit, k):
    nearest = s.topk(k).indices
    return nearest[(s + logit)[nearest].argsort(descending=True)]


def places(s, logit, k):
    return (s + logit)[s.topk(k).indices].argsort(descending=True)


def freeze_all(model):
    model.requires_grad_(False)


def freeze_by_name(model):
    for name, p in model.named_parameters():
        p.requires_grad_("norm" in name)


def freeze_by_class(model):
    for module in model.modules():
        if not list(module.children()):
            module.requires_grad_(isinstance(module, nn.LayerNorm))


def freeze_biases_too(model):
    for module in model.values():
        module.bias.requires_grad_(False)
        module.weight.requires_grad_(isinstance(module, nn.LayerNorm))


def best_of_validation(tried):
    return max(tried, key=lambda rate: tried[rate][0])


def gain(scores, frozen, full):
    return (mean(scores) - mean(frozen)) / (mean(full) - mean(frozen))


VERDICTS = {"first": "A", "second": "open", "third": "open"}

RIGHT = [
    (checks.gain_recovered, (gain,)),
    (checks.chosen_rate, (best_of_validation,)),
    (checks.what_can_be_said, (VERDICTS,)),
    (checks.training_bytes, (lambda n: 12 * n,)),
    (checks.only_layernorms, (freeze_by_class,)),
    (checks.target_caption, ("Emerald canvas, tiny fox",)),
    (checks.first_share, (share,)),
    (checks.recall_at_k, (recall,)),
    (checks.two_stage, (rank,)),
    (checks.text_branch_changes, (False, True, True)),
    (checks.post_norm_layer, (post_norm,)),
    (checks.unimodal_count, (unimodal,)),
    (checks.multimodal_reads, ("a", "c")),
    (checks.cross_branch, (cross_sum,)),
    (checks.gain_at_zero, (1e6, 1e-12)),
    (checks.sharing_count, (layer_count,)),
    (checks.tied_downs, (tie,)),
    (checks.shared_gradient, ([4, 3],)),
    (checks.chance_loss, (math.log(32), 32)),
    (checks.contrastive, (contrastive,)),
    (checks.draw_probabilities, (draw,)),
    (checks.token_index, (lambda f, p, n: f * n + 1 + p,)),
    (checks.frame_multipliers, (multipliers,)),
    (checks.largest_ratio, (7.389, 1.0)),
    (checks.bottleneck_count, (lambda D, r: 2 * D * r + r + 3 * D,)),
    (checks.identity_start, (zero_up,)),
    (checks.same_first_step, (0.12, 0.1, 3e-3, 4.0)),
    (checks.share_of_the_stream, (lambda h, added: added.norm(dim=-1) / h.norm(dim=-1),)),
    (checks.own_is_nearer, (lambda own, others: sum(a > b for a in own for b in others) / len(own) / len(others),)),
    (checks.unseen_by_contrast, ({"cross", "query residual"},)),
]
OPEN = [
    (checks.gain_recovered, (lambda scores, frozen, full: ...,)),
    (checks.chosen_rate, (lambda tried: ...,)),
    (checks.what_can_be_said, (VERDICTS | {"third": ...},)),
    (checks.training_bytes, (lambda n: ...,)),
    (checks.only_layernorms, (lambda model: ...,)),
    (checks.target_caption, (...,)),
    (checks.first_share, (lambda found, right: ...,)),
    (checks.recall_at_k, (lambda s, k: ...,)),
    (checks.two_stage, (lambda s, logit, k: ...,)),
    (checks.text_branch_changes, (False, True, ...)),
    (checks.post_norm_layer, (lambda *parts: ...,)),
    (checks.unimodal_count, (lambda D, r, blocks, layers: ...,)),
    (checks.multimodal_reads, ("a", ...)),
    (checks.cross_branch, (lambda z, own, text, s: ...,)),
    (checks.gain_at_zero, (..., 1e-12)),
    (checks.sharing_count, (lambda D, r, downs, ups: ...,)),
    (checks.tied_downs, (lambda branches: ...,)),
    (checks.shared_gradient, (...,)),
    (checks.chance_loss, (..., 32)),
    (checks.contrastive, (lambda s, tau: ...,)),
    (checks.draw_probabilities, (lambda s, same: ...,)),
    (checks.token_index, (lambda f, p, n: ...,)),
    (checks.frame_multipliers, (lambda w, temperature: ...,)),
    (checks.largest_ratio, (..., 1.0)),
    (checks.bottleneck_count, (lambda D, r: ...,)),
    (checks.identity_start, (lambda adapter: ...,)),
    (checks.same_first_step, (..., 0.1, 3e-3, 4.0)),
    (checks.share_of_the_stream, (lambda h, added: ...,)),
    (checks.own_is_nearer, (lambda matched, mismatched: ...,)),
    (checks.unseen_by_contrast, (...,)),
]
WRONG = [
    (checks.gain_recovered, (lambda s, frozen, full: mean(s) / mean(full),), "learned nothing would get a share"),
    (checks.gain_recovered, (lambda s, frozen, full: 100 * gain(s, frozen, full),), "not percent"),
    (checks.gain_recovered, (lambda s, frozen, full: mean(s) / (mean(full) - mean(frozen)),), "score minus frozen"),
    (checks.gain_recovered, (lambda s, frozen, full: mean(s) - mean(frozen),), "gain itself"),
    (checks.gain_recovered, (lambda s, frozen, full: gain([max(s)], frozen, full),), "not the best of them"),
    (checks.gain_recovered, (lambda s, frozen, full: gain(s[:1], frozen, full),), "not the first of them"),
    (
        checks.gain_recovered,
        (lambda s, frozen, full: gain(s, frozen, full[:1]),),
        "full fine-tuning's scores, not the first",
    ),
    (
        checks.gain_recovered,
        (lambda s, frozen, full: gain(s, frozen, [max(full)]),),
        "full fine-tuning's scores, not the best",
    ),
    (checks.gain_recovered, (lambda s, frozen, full: 0.1,), "expected 0.667"),
    (checks.chosen_rate, (lambda tried: max(tried, key=lambda rate: tried[rate][1]),), "best test score"),
    (checks.chosen_rate, (lambda tried: max(tried),), "largest rate"),
    (checks.chosen_rate, (lambda tried: max(val for val, _ in tried.values()),), "not its score"),
    (checks.chosen_rate, (lambda tried: max(tried, key=lambda rate: sum(tried[rate])),), "best on both together"),
    (checks.what_can_be_said, (VERDICTS | {"first": "open"},), "the first is not 'open': with every seed"),
    (checks.what_can_be_said, (VERDICTS | {"second": "A"},), "another seed could turn"),
    (checks.what_can_be_said, (VERDICTS | {"third": "A"},), "no spread"),
    (checks.what_can_be_said, ({"first": "A"},), "expected verdicts for"),
    (checks.training_bytes, (lambda n: 3 * n,), "takes 4 bytes"),
    (checks.training_bytes, (lambda n: 4 * n,), "gradient alone"),
    (checks.training_bytes, (lambda n: 8 * n,), "one of Adam's two running means short"),
    (checks.training_bytes, (lambda n: 16 * n,), "leave them out"),
    (checks.training_bytes, (lambda n: n,), "expected 12000"),
    (checks.only_layernorms, (lambda model: None,), "a Linear still trains"),
    (checks.only_layernorms, (freeze_all,), "`first` is frozen"),
    (checks.only_layernorms, (freeze_by_name,), "a Linear still trains"),
    (checks.only_layernorms, (freeze_biases_too,), "only one of them"),
    (checks.target_caption, ("fox, small, emerald",), "another word for small"),
    (checks.target_caption, ("fox, tiny",), "'emerald' is missing"),
    (checks.target_caption, ("tiny, emerald",), "what is to be seen"),
    (checks.target_caption, ("a tiny fox on emerald",), "the order is not"),
    (checks.first_share, (lambda found, right: 2,), "divide by"),
    (checks.first_share, (lambda found, right: 0.75,), "expected"),
    (checks.recall_at_k, (lambda s, k: recall(s.T, k),), "ranks the columns"),
    (checks.recall_at_k, (lambda s, k: 3 * recall(s, k),), "divide by"),
    (checks.recall_at_k, (lambda s, k: 0.0,), "expected"),
    (checks.two_stage, (lambda s, logit, k: (s + logit).topk(k).indices,), "matched every picture"),
    (checks.two_stage, (lambda s, logit, k: s.topk(k).indices,), "first stage alone"),
    (checks.two_stage, (lambda s, logit, k: rank(s, logit - s, k),), "not by the logit alone"),
    (checks.two_stage, (places,), "places among the candidates"),
    (checks.text_branch_changes, (True, True, True), "pictures never pass the text encoder"),
    (checks.text_branch_changes, (False, False, True), "both vectors come from the text encoder"),
    (checks.text_branch_changes, (False, True, False), "one of the two vectors has changed"),
    (checks.post_norm_layer, (adapter_in_front,), "in front of the last LayerNorm"),
    (checks.post_norm_layer, (adapter_of("x"),), "reads x"),
    (checks.post_norm_layer, (adapter_of("f"),), "reads what the layer gives"),
    (checks.post_norm_layer, (lambda *parts: post_norm(*parts[:5], A=lambda a: 0),), "the adapter is missing"),
    (checks.post_norm_layer, (without_residual("attention"),), "around self-attention"),
    (checks.post_norm_layer, (without_residual("ffn"),), "around the feed-forward part"),
    (checks.post_norm_layer, (pre_norm,), "a pre-norm layer"),
    (checks.post_norm_layer, (norms_exchanged,), "exchanged"),
    (checks.post_norm_layer, (lambda x, *parts: x,), "another layer"),
    (checks.unimodal_count, (lambda D, r, b, t: (b + t) * (2 * D * r + r + 3 * D),), "serve both encoders"),
    (checks.unimodal_count, (lambda D, r, b, t: max(b, t) * (3 * D * r + r + 4 * D),), "no up-projection there"),
    (checks.unimodal_count, (lambda D, r, b, t: unimodal(D, r, b, t) - 2 * D * max(b, t),), "LayerNorm of 2D"),
    (checks.unimodal_count, (lambda D, r, b, t: unimodal(D, r, b, t) - r * max(b, t) - (b + t) * D,), "have biases"),
    (
        checks.unimodal_count,
        (lambda D, r, b, t: unimodal(D, r, b, t) - (2 * D + D * r + r) * abs(b - t),),
        "upper layers have adapters, too",
    ),
    (checks.unimodal_count, (lambda D, r, b, t: 0,), "expected"),
    (checks.multimodal_reads, ("c", "c"), "A_text does not read 'c'. That is the text behind"),
    (checks.multimodal_reads, ("a", "a"), "A_cross does not read 'a'. That is the text before"),
    (checks.multimodal_reads, ("a", "e"), "picture's tokens"),
    (checks.multimodal_reads, ("q", "c"), "is none of"),
    (checks.cross_branch, (lambda z, own, text, s: s * own(z),), "text up-projection is missing"),
    (checks.cross_branch, (lambda z, own, text, s: s * text(z),), "own up-projection is missing"),
    (checks.cross_branch, (lambda z, own, text, s: own(z) + text(z),), "scale is missing"),
    (checks.cross_branch, (lambda z, own, text, s: s * own(z) + text(z),), "only the own part"),
    (checks.cross_branch, (lambda z, own, text, s: own(z) + s * text(z),), "only the text part"),
    (checks.cross_branch, (lambda z, own, text, s: s * (own(z) + z @ text.weight.T),), "bias of the text"),
    (checks.cross_branch, (lambda z, own, text, s: s * (z @ own.weight.T + text(z)),), "bias of the own"),
    (checks.cross_branch, (lambda z, own, text, s: s * z @ (own.weight + text.weight).T,), "both biases"),
    (checks.cross_branch, (lambda z, own, text, s: 7 * own(z),), "another sum"),
    (checks.cross_branch, (lambda z, own, text, s: z,), "shape"),
    (checks.gain_at_zero, (1e12, 1e-12), "below a root"),
    (checks.gain_at_zero, (316, 1e-12), "for eps = 1e-5"),
    (checks.gain_at_zero, (2.0, 1e-12), "expected 1e"),
    (checks.sharing_count, (lambda D, r, d, u: layer_count(D, r, d, u) - 2 * D,), "LayerNorm is missing"),
    (checks.sharing_count, (lambda D, r, d, u: layer_count(D, r, d, u) + 4 * D,), "one LayerNorm for all"),
    (checks.sharing_count, (lambda D, r, d, u: layer_count(D, r, d, u) - d * r,), "bias of r numbers"),
    (checks.sharing_count, (lambda D, r, d, u: layer_count(D, r, d, u) - u * D,), "bias of D numbers"),
    (checks.sharing_count, (lambda D, r, d, u: 2 * D + (d + u) * D * r,), "linear maps have biases"),
    (checks.sharing_count, (lambda D, r, d, u: 2 * D + d * (D * r + D) + u * (D * r + r),), "biases are exchanged"),
    (checks.sharing_count, (lambda D, r, d, u: 4 * D * r + r + 5 * D,), "expected"),
    (checks.tied_downs, (copy_downs,), "text's numbers are equal, but it is a copy"),
    (checks.tied_downs, (tie_text_alone,), "cross still has a down-projection of its own"),
    (checks.tied_downs, (tie_to_text,), "vision's down-projection was replaced"),
    (checks.tied_downs, (tie_all,), "only the down is shared"),
    (checks.shared_gradient, ([4.0, 6.0],), "no gradient back"),
    (checks.shared_gradient, ([4.0, 2.0],), "that is the table's"),
    (checks.shared_gradient, ([1, 1],), "add the rows"),
    (checks.chance_loss, (1 / 32, 32), "the probability of the right caption"),
    (checks.chance_loss, (-math.log(32), 32), "not negative"),
    (checks.chance_loss, (5.0, 32), "base 2"),
    (checks.chance_loss, (2 * math.log(32), 32), "mean of both directions"),
    (checks.chance_loss, (0, 32), "always right"),
    (checks.chance_loss, (1.0, 32), "expected 3.466"),
    (checks.contrastive, (lambda s, tau: cross_entropy(s / tau),), "captions, and captions pictures"),
    (checks.contrastive, (lambda s, tau: cross_entropy(s.T / tau),), "pictures, and pictures captions"),
    (checks.contrastive, (lambda s, tau: contrastive(s, 1),), "temperature is missing"),
    (checks.contrastive, (lambda s, tau: contrastive(s, 1 / tau),), "do not multiply"),
    (checks.contrastive, (lambda s, tau: 2 * contrastive(s, tau),), "not their sum"),
    (checks.contrastive, (lambda s, tau: 3 * contrastive(s, tau),), "mean over the batch"),
    (checks.contrastive, (lambda s, tau: -contrastive(s, tau),), "minus the logarithm"),
    (checks.contrastive, (lambda s, tau: 0.0,), "expected"),
    (checks.contrastive, (lambda s, tau: s,), "one number"),
    (checks.draw_probabilities, (lambda s, same: s.softmax(1),), "it is no mismatch"),
    (checks.draw_probabilities, (lambda s, same: s.masked_fill(same, 0).softmax(1),), "minus infinity"),
    (checks.draw_probabilities, (lambda s, same: s.softmax(1) * ~same,), "has to sum to 1"),
    (checks.draw_probabilities, (lambda s, same: draw(s.T, same.T).T,), "over its texts"),
    (checks.draw_probabilities, (lambda s, same: draw(0 * s, same),), "equally probable"),
    (checks.draw_probabilities, (lambda s, same: draw(3 * s, same),), "expected a softmax"),
    (checks.draw_probabilities, (lambda s, same: s[0],), "shape"),
    (checks.token_index, (lambda f, p, n: f * n + p,), "begins with its CLS"),
    (checks.token_index, (lambda f, p, n: (f + 1) * n + 1 + p,), "f frames stand in front"),
    (checks.token_index, (lambda f, p, n: f * (n + 1) + 1 + p,), "counts the CLS already"),
    (checks.token_index, (lambda f, p, n: p * n + f,), "patch-major"),
    (checks.token_index, (lambda f, p, n: (f - 1) * n + 1 + p,), "not from 1"),
    (checks.token_index, (lambda f, p, n: 0,), "expected 117"),
    (checks.frame_multipliers, (lambda w, t: multipliers(w, t) / 3,), "factor F is missing"),
    (checks.frame_multipliers, (lambda w, t: multipliers(w, t) * 2 / 3,), "not of clips"),
    (checks.frame_multipliers, (lambda w, t: 3 * (w / t).softmax(0),), "over the clips"),
    (checks.frame_multipliers, (lambda w, t: multipliers(w, 1),), "temperature is missing"),
    (checks.frame_multipliers, (lambda w, t: multipliers(w, 1 / t),), "do not multiply"),
    (checks.frame_multipliers, (lambda w, t: w,), "expected F times"),
    (checks.frame_multipliers, (lambda w, t: w[0],), "shape"),
    (checks.largest_ratio, (math.e, 1.0), "can differ by 2"),
    (checks.largest_ratio, (2.0, 1.0), "e to that power"),
    (checks.largest_ratio, (1.65, 1.0), "for temperature 4"),
    (checks.largest_ratio, (math.exp(4), 2.0), "do not multiply"),
    (checks.largest_ratio, (10.0, 1.0), "expected 7.39"),
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
    (checks.share_of_the_stream, (lambda h, added: h.norm(dim=-1) / added.norm(dim=-1),), "upside down"),
    (checks.share_of_the_stream, (lambda h, added: added.sum(-1) / h.sum(-1),), "a norm sums squares"),
    (checks.share_of_the_stream, (lambda h, added: (added**2).sum(-1) / (h**2).sum(-1),), "take the roots"),
    (checks.share_of_the_stream, (lambda h, added: added.norm() / h.norm(),), "one number a token"),
    (checks.share_of_the_stream, (lambda h, added: h[..., 0],), "expected"),
    (checks.own_is_nearer, (lambda own, others: 1.0,), "comparing the means"),
    (checks.own_is_nearer, (lambda own, others: sum(a > b for a in own for b in others),), "divide by"),
    (checks.own_is_nearer, (lambda own, others: 0.25,), "comparisons that the matched one wins"),
    (checks.own_is_nearer, (lambda own, others: 0.5,), "6 of 8"),
    (checks.unseen_by_contrast, ({"text", "cross"},), "speaks in the text encoder"),
    (checks.unseen_by_contrast, ({"trained heads", "cross"},), "contrast compares features"),
    (checks.unseen_by_contrast, ({"cross"},), "expected two"),
]


# 09, questions and captions


def text_loss(logits, ids, mask, shift=1, counted=True):
    said = logits[:, : logits.shape[1] - shift].log_softmax(-1)
    losses = -said.gather(-1, ids[:, shift:, None])[..., 0]
    return (losses * (mask[:, shift:] if counted else 1)).sum(1)


RIGHT += [
    (checks.looked_at, ("e", "q", "e")),
    (checks.next_token_loss, (text_loss,)),
    (checks.greedy_and_best, ("hot dog", "violin", "hot pepper")),
]
OPEN += [
    (checks.looked_at, ("e", ..., "e")),
    (checks.next_token_loss, (lambda logits, ids, mask: ...,)),
    (checks.greedy_and_best, ("hot dog", "violin", ...)),
]
WRONG += [
    (checks.looked_at, ("q", "q", "e"), "question encoder does not look at 'q'"),
    (checks.looked_at, ("e", "e", "e"), "never sees the picture itself"),
    (checks.looked_at, ("e", "q", "q"), "nobody asks"),
    (checks.next_token_loss, (lambda *given: text_loss(*given, shift=0),), "about the NEXT one"),
    (checks.next_token_loss, (lambda *given: text_loss(*given, shift=2),), "shift once, not twice"),
    (checks.next_token_loss, (lambda *given: text_loss(*given, counted=False),), "padding was counted"),
    (checks.next_token_loss, (lambda *given: text_loss(*given) / given[2][:, 1:].sum(1),), "without dividing"),
    (checks.next_token_loss, (lambda *given: -text_loss(*given),), "minus the logarithm"),
    (checks.next_token_loss, (lambda *given: 2 * text_loss(*given),), "expected -log p"),
    (checks.next_token_loss, (lambda *given: text_loss(*given).mean(),), "one number for each text"),
    (checks.greedy_and_best, ("violin", "violin", "hot pepper"), "greedy is not 'violin'"),
    (checks.greedy_and_best, ("hot dog", "hot dog", "hot pepper"), "best is not 'hot dog', which has probability 0.25"),
    (checks.greedy_and_best, ("hot dog", "violin", "violin"), "only the two candidates count"),
    (checks.greedy_and_best, ("dog", "violin", "fox"), "is no answer here"),
]


# 11, a real BLIP, and A, the paper and its code


def clean(text, words=30, marks='.!"()*#:;~', gap=" "):
    kept = "".join(gap if c in marks else c for c in text.lower())
    return " ".join(kept.split()[:words])


def by_first_part(name):
    return "adapter" in name and not name.split(".")[0].endswith("_m")


def by_parts(name):
    return "adapter" in name and not any(part.endswith("_m") for part in name.split("."))


RIGHT += [
    (checks.image_tokens, (lambda size, patch: (size // patch) ** 2 + 1,)),
    (checks.caption_cleaner, (clean,)),
    (checks.chance, (lambda n, k: (1 / n, 1 / n),)),
    (checks.trainable_by_name, (by_parts,)),
    (checks.frozen_by_accident, (lambda D, layers: 2 * D * layers,)),
    (checks.decay_applied_twice, (0.995 * 0.995,)),
]
OPEN += [
    (checks.image_tokens, (lambda size, patch: ...,)),
    (checks.caption_cleaner, (lambda text: ...,)),
    (checks.chance, (lambda n, k: ...,)),
    (checks.trainable_by_name, (lambda name: ...,)),
    (checks.frozen_by_accident, (lambda D, layers: ...,)),
    (checks.decay_applied_twice, (...,)),
]
WRONG += [
    (checks.image_tokens, (lambda size, patch: (size // patch) ** 2,), "one more token"),
    (checks.image_tokens, (lambda size, patch: size // patch + 1,), "one row of patches"),
    (checks.image_tokens, (lambda size, patch: size**2 + 1,), "counts pixels"),
    (checks.image_tokens, (lambda size, patch: 37,), "expected 577"),
    (checks.caption_cleaner, (lambda text: " ".join(text.split()),), "lower case"),
    (checks.caption_cleaner, (lambda text: clean(text, marks=""),), "full stop"),
    (checks.caption_cleaner, (lambda text: clean(text, marks="."),), "all of"),
    (checks.caption_cleaner, (lambda text: clean(text, gap=""),), "two words become one"),
    (checks.caption_cleaner, (lambda text: clean(text, marks='.!"()*#:;~,'),), "commas stay"),
    (checks.caption_cleaner, (lambda text: clean(text, words=40),), "at most 30"),
    (checks.chance, (lambda n, k: (1 / n, k / n),), "one in as many as there are pictures"),
    (checks.chance, (lambda n, k: (1 / n, 1 / n / k),), "every caption of the picture"),
    (checks.chance, (lambda n, k: (1 / n / k, 1 / n),), "holds pictures"),
    (checks.chance, (lambda n, k: (0.5, 0.5),), "how many of the gallery"),
    (
        checks.trainable_by_name,
        (lambda name: "adapter" in name and "_m" not in name,),
        "norm_cross_modal.weight belongs",
    ),
    (checks.trainable_by_name, (lambda name: "adapter" in name,), "adapters_m.0.down_proj.weight should stay"),
    (checks.trainable_by_name, (lambda name: "_m." not in name,), "visual_encoder.blocks.0.norm1.weight should stay"),
    (checks.trainable_by_name, (by_first_part,), "copies.text_encoder_m.encoder.video_key_adapter.scale should stay"),
    (checks.frozen_by_accident, (lambda D, layers: D * layers,), "a weight and a bias"),
    (checks.frozen_by_accident, (lambda D, layers: 2 * D,), "in every layer"),
    (checks.frozen_by_accident, (lambda D, layers: 4 * D * layers,), "LN_in has no"),
    (checks.frozen_by_accident, (lambda D, layers: 1,), "expected 600"),
    (checks.decay_applied_twice, (0.995,), "one move"),
    (checks.decay_applied_twice, (0.99,), "shares of what is left multiply"),
    (checks.decay_applied_twice, (0.995**0.5,), "the inverse"),
    (checks.decay_applied_twice, (1 - 0.005**2,), "not those that are taken over"),
    (checks.decay_applied_twice, (0.5,), "multiply what each move keeps"),
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
