"""Wrong and right solutions of every programming exercise of the assignments: what the grading must tell apart.

A wrong one is the reference solution with a mistake in it (a snippet and what stands there instead), the points that are
left, and a part of what the student-facing check has to say. A right one is another way of writing it, in full.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Wrong:
    """`old` stands exactly once in the reference solution; with `old=""`, `new` replaces its whole body."""

    name: str
    old: str
    new: str
    says: str
    points: float = 0


@dataclass(frozen=True)
class Exercise:
    assignment: str
    solution: str  # the cell that is written
    test: str  # the cell that grades it
    check: str  # of uniadapter_edu.checks
    function: str
    wrong: tuple[Wrong, ...]
    right: dict[str, str]


# ------------------------------------------------------------------------------------------------------- assignment 1

LAYER_NORM = Exercise(
    "a1", "layer-norm", "layer-norm-test", "layer_norm", "layer_norm",
    (
        Wrong("variance by D - 1", "(h - mean).pow(2).mean(-1, keepdim=True)", "h.var(-1, keepdim=True)", "divided by D - 1"),
        Wrong("eps outside the root", "torch.sqrt(variance + eps)", "(torch.sqrt(variance) + eps)", "outside of the root"),
        Wrong("no eps", "variance + eps", "variance", "eps is missing"),
        Wrong("eps fixed", "variance + eps", "variance + 1e-5", "not the one that is given"),
        Wrong("no root", "torch.sqrt(variance + eps)", "(variance + eps)", "root is missing"),
        Wrong("over the tokens", "", "mean = h.mean(-2, keepdim=True)\nvariance = (h - mean).pow(2).mean(-2, keepdim=True)\n"
              "return (h - mean) / torch.sqrt(variance + eps) * weight + bias", "over the tokens"),
        Wrong("over everything", "", "return (h - h.mean()) / torch.sqrt(h.var(correction=0) + eps) * weight + bias",
              "all numbers together"),
        Wrong("mean stays", "return (h - mean)", "return h", "mean is not subtracted"),
        Wrong("no weight", " * weight", "", "weight is missing"),
        Wrong("no bias", " + bias", "", "bias is missing"),
        Wrong("bias times weight", "", "mean = h.mean(-1, keepdim=True)\nreturn ((h - mean) / torch.sqrt((h - mean).pow(2)"
              ".mean(-1, keepdim=True) + eps) + bias) * weight", "multiplied by the weight"),
        Wrong("in place", "variance = (h - mean)", "h -= mean\n    mean = 0\n    variance = h", "changed in place", 3),
        Wrong("gradient past the statistics", "mean = h", "mean = h.detach()", "gradient of `h` is wrong", 4),
        Wrong("float32 fixed", "return (h - mean) / torch.sqrt(variance + eps) * weight + bias",
              "return ((h - mean) / torch.sqrt(variance + eps) * weight + bias).float()", "dtype is fixed"),
        Wrong("detached", "weight + bias", "weight.detach() + bias", "no gradient reaches `weight`", 4),
    ),
    {
        "torch.var": "var, mean = torch.var_mean(h, dim=-1, correction=0, keepdim=True)\n"
        "return torch.addcmul(bias, (h - mean) * torch.rsqrt(var + eps), weight)",
        "einsum": "D = h.shape[-1]\nmu = torch.einsum('...d->...', h)[..., None] / D\nc = h - mu\n"
        "sigma = torch.einsum('...d,...d->...', c, c)[..., None] / D\nreturn weight * c * (sigma + eps) ** -0.5 + bias",
        "mean of squares": "m = h.mean(dim=-1).unsqueeze(-1)\nv = (h * h).mean(dim=-1).unsqueeze(-1) - m * m\n"
        "return (h - m) / (v + eps).sqrt() * weight + bias",
        "a helper": "def centred(x):\n    return x - torch.sum(x, -1, keepdim=True) / x.size(-1)\n\nx = centred(h)\n"
        "length = torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2 / x.size(-1)\nreturn x.div((length + eps).sqrt()).mul(weight).add(bias)",
        "batch of one": "flat = h.reshape(-1, h.shape[-1])\nrows = []\nfor row in flat:\n    c = row - row.mean()\n"
        "    rows.append(c / (c.square().mean() + eps).sqrt() * weight + bias)\nreturn torch.stack(rows).reshape(h.shape)",
    },
)  # fmt: skip

ADAPTER = Exercise(
    "a1", "adapter", "adapter-test", "adapter", "adapter",
    (
        Wrong("no ReLU", "torch.relu(down(norm(h)))", "down(norm(h))", "ReLU is missing"),
        Wrong("ReLU behind up", "", "return s * torch.relu(up(down(norm(h))))", "behind the up-projection"),
        Wrong("second ReLU", "s * up(z)", "s * torch.relu(up(z))", "second ReLU"),
        Wrong("ReLU before down", "torch.relu(down(norm(h)))", "down(torch.relu(norm(h)))", "before the down"),
        Wrong("GELU", "torch.relu(", "nn.functional.gelu(", "activation is another"),
        Wrong("LayerNorm skipped", "norm(h)", "h", "LayerNorm is skipped"),
        Wrong("a LayerNorm of its own", "norm(h)", "nn.functional.layer_norm(h, h.shape[-1:])", "own weight and bias"),
        Wrong("unscaled", "s * up(z)", "up(z)", "scale is missing"),
        Wrong("scaled twice", "s * up(z)", "s * up(z) * s", "applied twice"),
        Wrong("scale inside", "s * up(z)", "up(s * z)", "must multiply the bias"),
        Wrong("no up bias", "s * up(z)", "s * (z @ up.weight.T)", "bias of the up-projection is missing"),
        Wrong("no down bias", "down(norm(h))", "norm(h) @ down.weight.T", "bias of the down-projection is missing"),
        Wrong("residual added", "return s", "return h + s", "residual is added: "),
        Wrong("residual twice", "return s", "return 2 * h + s", "and twice"),
        Wrong("in place", "z = torch.relu(down(norm(h)))", "h.copy_(norm(h))\n    z = torch.relu(down(h))", "changed in place", 4),
        Wrong("detached", "norm(h)", "norm(h).detach()", "no gradient reaches `h`", 5),
        Wrong("no_grad", "", "with torch.no_grad():\n    return s * up(torch.relu(down(norm(h))))", "no gradient reaches", 5),
        Wrong("by the package", "", "import uniadapter_edu as ua\na = ua.UniAdapter(h.shape[-1], ua.UniAdapterConfig("
              "bottleneck=down.out_features, modalities=('vision',), cross_reuses_text_up=False, scale=abs(s)))\n"
              "a.norm_in, a.down, a.up['vision'] = norm, down, up\nreturn a.vision(h) * (1 if s > 0 else -1)", ""),
    ),
    {
        "functional": "F = nn.functional\nnormed = F.layer_norm(h, (h.shape[-1],), norm.weight, norm.bias, norm.eps)\n"
        "hidden = F.relu(F.linear(normed, down.weight, down.bias))\nreturn F.linear(hidden, up.weight, up.bias) * s",
        "nn.Sequential": "return nn.Sequential(norm, down, nn.ReLU(), up)(h).mul(s)",
        "einsum": "x = torch.einsum('...d,rd->...r', norm(h), down.weight)\nif down.bias is not None:\n    x = x + down.bias\n"
        "x = x.clamp_min(0)\nx = torch.einsum('...r,dr->...d', x, up.weight)\nif up.bias is not None:\n    x = x + up.bias\nreturn s * x",
        "a class inside": "class Module(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a, self.b, self.c = norm, down, up\n\n"
        "    def forward(self, x):\n        y = self.b(self.a(x))\n        return s * self.c(torch.where(y > 0, y, torch.zeros_like(y)))\n\nreturn Module()(h)",
    },
)  # fmt: skip

START = Exercise(
    "a1", "start", "start-test", "start", "start",
    (
        Wrong("weight only", "nn.init.zeros_(up.bias)", "pass", "the bias of `up` is not zero"),
        Wrong("bias only", "nn.init.zeros_(up.weight)", "pass", "the weight of `up` is not zero"),
        Wrong("down zeroed too", "nn.init.zeros_(up.bias)", "nn.init.zeros_(up.bias)\n    nn.init.zeros_(down.weight)\n"
              "    nn.init.zeros_(down.bias)", "`down` was changed", 2),
        Wrong("only down", "", "nn.init.zeros_(down.weight)\nnn.init.zeros_(down.bias)", "the weight of `up`"),
        Wrong("norm zeroed too", "nn.init.zeros_(up.bias)", "nn.init.zeros_(up.bias)\n    nn.init.zeros_(norm.weight)\n"
              "    nn.init.zeros_(norm.bias)", "`norm` was changed", 2),
        Wrong("frozen", "nn.init.zeros_(up.bias)", "nn.init.zeros_(up.bias)\n    up.requires_grad_(False)", "is frozen now", 3),
        Wrong("nearly zero", "nn.init.zeros_(up.weight)", "nn.init.normal_(up.weight, std=1e-3)", "weight of `up` is not zero"),
        Wrong("new parameters", "", "up.weight = nn.Parameter(torch.zeros_like(up.weight))\n"
              "up.bias = nn.Parameter(torch.zeros_like(up.bias))", "new parameters", 4),
        Wrong("ones", "nn.init.zeros_(up.weight)", "nn.init.ones_(up.weight)", "weight of `up` is not zero"),
        Wrong("down's bias zeroed", "nn.init.zeros_(up.bias)", "nn.init.zeros_(up.bias)\n    nn.init.zeros_(down.bias)",
              "`down` was changed", 2),
    ),
    {
        "no_grad": "with torch.no_grad():\n    up.weight.zero_()\n    up.bias.zero_()",
        "loop": "for p in up.parameters():\n    p.data.fill_(0)",
        "state_dict": "up.load_state_dict({k: torch.zeros_like(v) for k, v in up.state_dict().items()})",
        "apply": "def zero(m):\n    nn.init.constant_(m.weight, 0)\n    nn.init.constant_(m.bias, 0)\n\nup.apply(zero)",
    },
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------- assignment 2

LOOP = "for parameter in model.parameters():\n        parameter.requires_grad_(False)"
FREEZE = Exercise(
    "a2", "freeze", "freeze-test", "freeze", "freeze",
    (
        Wrong("nothing", LOOP, "pass", "nothing is frozen"),
        Wrong("eval instead", LOOP, "model.eval()", "nothing is frozen"),
        Wrong("eval besides", LOOP, "model.requires_grad_(False).eval()", r"train\(\) or eval\(\)", 4),
        Wrong("children only", LOOP, "for child in model.children():\n        child.requires_grad_(False)", "belongs to the model"),
        Wrong("LayerNorm left out", LOOP, "for m in model.modules():\n        if not isinstance(m, nn.LayerNorm):\n"
              "            for p in m.parameters(recurse=False):\n                p.requires_grad_(False)", "a LayerNorm still trains"),
        Wrong("top layers only", LOOP, "for m in [model, *model.children()]:\n        for p in m.parameters(recurse=False):\n"
              "            p.requires_grad_(False)", "inside another one"),
        Wrong("by name", LOOP, "for name, p in model.named_parameters():\n        p.requires_grad_('_m' in name or 'norm' in name)",
              "LayerNorm still trains"),
        Wrong("weights only", LOOP, "for name, p in model.named_parameters():\n        if 'bias' not in name:\n"
              "            p.requires_grad_(False)", "still trains"),
        Wrong("zeroed", "parameter.requires_grad_(False)", "parameter.requires_grad_(False).zero_()", "numbers changed", 3),
        Wrong("nothing returned", "return model", "return None", "does not return the model", 4),
        Wrong("a copy", "", "import copy\nnew = copy.deepcopy(model)\nreturn new.requires_grad_(False)", "nothing is frozen"),
        Wrong("detached", "return model", "model.register_forward_hook(lambda m, a, o: o.detach())\n    return model",
              "no gradient passes", 4),
    ),
    {
        "requires_grad_": "return model.requires_grad_(False)",
        "set the attribute": "for _, p in model.named_parameters():\n    p.requires_grad = False\nreturn model",
        "apply": "def off(module):\n    for p in module.parameters(recurse=False):\n        p.requires_grad_(False)\n\nreturn model.apply(off)",
        "recursion": "for p in model._parameters.values():\n    if p is not None:\n        p.requires_grad = False\n"
        "for child in model.children():\n    freeze(child)\nreturn model",
    },
)  # fmt: skip

HOOK = "hook = lambda module, args, output, adapter=adapter: output + adapter(args[0])"
INSERT = Exercise(
    "a2", "insert", "insert-test", "insert", "insert",
    (
        Wrong("late binding", HOOK, "hook = lambda module, args, output: output + adapter(args[0])", "has the last adapter"),
        Wrong("first adapter everywhere", "adapter(args[0])", "adapters[0](args[0])", "has the first adapter"),
        Wrong("reads the output", "adapter(args[0])", "adapter(output)", "reads what the block gives out"),
        Wrong("output lost", "output + adapter", "adapter", "own output is lost"),
        Wrong("input added", "output + adapter", "output + args[0] + adapter", "input is added as well"),
        Wrong("first block only", "zip(model.blocks, adapters)", "list(zip(model.blocks, adapters))[:1]", "only the first block"),
        Wrong("nothing inserted", "handles.append(block.register_forward_hook(hook))", "pass", "nothing was inserted"),
        Wrong("detached", "adapter(args[0])", "adapter(args[0]).detach()", "no gradient reaches the adapters", 5),
        Wrong("in place", "output + adapter(args[0])", "output.add_(adapter(args[0]))", "changed in place"),
        Wrong("stays", "handle.remove()", "pass", "not the old one", 4),
        Wrong("last one removed", "for handle in handles:\n            handle.remove()", "handles[-1].remove()", "not the old one", 4),
        Wrong("no function", "return remove", "return handles", "has to return a function", 0),
    ),
    {
        "a wrapper": "class Wrapped(nn.Module):\n    def __init__(self, inner, extra):\n        super().__init__()\n"
        "        self.inner, self.extra = inner, extra\n\n    def forward(self, x):\n        return self.inner(x) + self.extra(x)\n\n"
        "old = [b for b in model.blocks]\nfor k in range(len(old)):\n    model.blocks[k] = Wrapped(old[k], adapters[k])\n\n"
        "def undo():\n    for k, b in enumerate(old):\n        model.blocks[k] = b\n\nreturn undo",
        "forward replaced": "def wrap(block, extra):\n    old = block.forward\n    block.forward = lambda x: old(x) + extra(x)\n\n"
        "for pair in zip(model.blocks, adapters):\n    wrap(*pair)\n\ndef undo():\n    for block in model.blocks:\n        del block.forward\n\nreturn undo",
        "partial": "from functools import partial\n\ndef add(extra, module, inputs, out):\n    (x,) = inputs\n    return torch.add(out, extra(x))\n\n"
        "hooks = [b.register_forward_hook(partial(add, a)) for b, a in zip(model.blocks, adapters)]\nreturn lambda: [h.remove() for h in hooks]",
        "pre-hook and hook": "seen, hooks = {}, []\nfor k, (b, a) in enumerate(zip(model.blocks, adapters)):\n"
        "    def before(m, args, k=k):\n        seen[k] = args[0]\n\n    def after(m, args, out, k=k, a=a):\n        return out + a(seen.pop(k))\n\n"
        "    hooks += [b.register_forward_pre_hook(before), b.register_forward_hook(after)]\n\n"
        "def undo():\n    while hooks:\n        hooks.pop().remove()\n\nreturn undo",
        "a context": "import contextlib\nstack = contextlib.ExitStack()\nfor b, a in zip(model.blocks, adapters):\n"
        "    h = b.register_forward_hook(lambda m, x, y, a=a: y + a(*x))\n    stack.callback(h.remove)\nreturn stack.close",
    },
)  # fmt: skip

ONCE = "{id(p): p for p in [*backbone.parameters(), *adapters.parameters()]}.values()"
COUNT = Exercise(
    "a2", "count", "count-test", "count", "count",
    (
        Wrong("shared ones three times", ONCE, "[p for m in [*backbone.modules(), *adapters] for p in (m.parameters() if m in list(adapters)"
              " else m.parameters(recurse=False))]", "counted three times"),
        Wrong("frozen ones, too", " if p.requires_grad)", ")", "frozen parameters|all parameters"),
        Wrong("frozen ones of the adapters", " if p.requires_grad)", " if any(p is q for q in adapters.parameters()))", "frozen parameters of the"),
        Wrong("tensors", "p.numel() for p in parameters", "1 for p in parameters", "these are tensors"),
        Wrong("weights only", " if p.requires_grad)", " if p.requires_grad and p.ndim > 1)", "biases are parameters"),
        Wrong("the backbone's", "trainable = sum(p.numel() for p in parameters if p.requires_grad)",
              "trainable = sum(p.numel() for p in backbone.parameters())", "these are the backbone's"),
        Wrong("by state_dict", "trainable = sum(p.numel() for p in parameters if p.requires_grad)",
              "trainable = sum(v.numel() for v in adapters.state_dict().values())", "frozen parameters are counted, and shared"),
        Wrong("backbone alone is searched", ONCE, "list(backbone.parameters())", "those that train are in the adapters"),
        Wrong("a part", "100 * trainable", "trainable", "times 100", 3),
        Wrong("of all", "for p in backbone.parameters())\n", "for p in parameters)\n", "that is of all parameters", 3),
        Wrong("rounded", "100 * trainable / sum(p.numel() for p in backbone.parameters())",
              "100 * trainable // sum(p.numel() for p in backbone.parameters())", "rounded off", 3),
        Wrong("with buffers", "sum(p.numel() for p in backbone.parameters())\n", "sum(p.numel() for p in backbone.state_dict().values())\n",
              "buffers are no parameters", 3),
    ),
    {
        "ModuleList": "both = nn.ModuleList([backbone, adapters])\nn = sum(p.numel() for p in both.parameters() if p.requires_grad)\n"
        "return n, n / sum(p.numel() for p in backbone.parameters()) * 100",
        "a set": "n = 0\nfor p in set(backbone.parameters()) | set(adapters.parameters()):\n    n += p.numel() * p.requires_grad\n"
        "total = sum(map(torch.numel, backbone.parameters()))\nreturn n, 100.0 * n / total",
        "seen": "seen, n = [], 0\nfor module in (backbone, adapters):\n    for m in module.modules():\n        for p in m.parameters(recurse=False):\n"
        "            if p.requires_grad and id(p) not in seen:\n                seen.append(id(p))\n                n += p.nelement()\n"
        "return n, n * 100 / sum(p.nelement() for p in backbone.parameters())",
        "tensors of sizes": "ps = {p.data_ptr(): p for p in list(backbone.parameters()) + list(adapters.parameters()) if p.requires_grad}\n"
        "n = int(sum(torch.tensor(p.shape).prod() for p in ps.values()))\nreturn (n, float(n / sum(p.numel() for p in backbone.parameters()) * 100))",
    },
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------- assignment 3

RETURN = "return branches"
BUILD = Exercise(
    "a3", "build", "build-test", "build", "build",
    (
        Wrong("copies", RETURN, "import copy\n    for n in ('text', 'cross'):\n        for part in ('down', 'up'):\n"
              "            branches[n][part] = copy.deepcopy(branches[n][part])\n    return branches", "copies, which part"),
        Wrong("equal numbers", "down if share in (\"down\", \"all\") else nn.Linear(D, r)", "nn.Linear(D, r)", "not shared: 3 parameters"),
        Wrong("weight alone", RETURN, "for n in ('text', 'cross'):\n        branches[n]['down'] = nn.Linear(D, r)\n"
              "        if share in ('down', 'all'):\n            branches[n]['down'].weight = branches['vision']['down'].weight\n"
              "    return branches", "the bias of down is not shared"),
        Wrong("cross left out", RETURN, "branches['cross']['down'] = nn.Linear(D, r)\n    return branches", "2 parameters where one"),
        Wrong("up shared for down", 'up if share in ("up", "all")', 'up if share in ("down", "all")', "are expected"),
        Wrong("always shared", 'down if share in ("down", "all") else nn.Linear(D, r)', "down", "1 parameter.s. where three"),
        Wrong("all is down", 'up if share in ("up", "all")', 'up if share == "up"', "the weight of up is not shared"),
        Wrong("a plain dictionary", RETURN, "return dict(branches)", "no module", 4),
        Wrong("D and r exchanged", "down, up = nn.Linear(D, r), nn.Linear(r, D)", "down, up = nn.Linear(r, D), nn.Linear(D, r)", "are exchanged"),
        Wrong("frozen", RETURN, "return branches.requires_grad_(False)", "does not train", 4),
        Wrong("the same start", RETURN, "for m in branches.modules():\n        if isinstance(m, nn.Linear):\n"
              "            nn.init.constant_(m.weight, 0.5)\n    return branches", "the same numbers three times"),
        Wrong("a branch missing", '("vision", "text", "cross")', '("vision", "text")', "'cross' is missing"),
    ),
    {
        "comprehension": "d, u = share in ('down', 'all'), share in ('up', 'all')\nD1, U1 = nn.Linear(D, r), nn.Linear(r, D)\n"
        "make = lambda: nn.ModuleDict(dict(down=D1 if d else nn.Linear(D, r), up=U1 if u else nn.Linear(r, D)))\n"
        "return nn.ModuleDict({k: make() for k in ['vision', 'text', 'cross']})",
        "tied afterwards": "b = nn.ModuleDict({k: nn.ModuleDict({'down': nn.Linear(D, r), 'up': nn.Linear(r, D)}) for k in ('vision', 'text', 'cross')})\n"
        "for part in {'none': [], 'down': ['down'], 'up': ['up'], 'all': ['down', 'up']}[share]:\n    for k in ('text', 'cross'):\n"
        "        b[k][part] = b['vision'][part]\nreturn b",
        "parameters tied": "b = nn.ModuleDict({k: nn.ModuleDict({'down': nn.Linear(D, r), 'up': nn.Linear(r, D)}) for k in ('cross', 'text', 'vision')})\n"
        "for part in ('down', 'up'):\n    if share in (part, 'all'):\n        for k in ('text', 'vision'):\n"
        "            b[k][part].weight, b[k][part].bias = b['cross'][part].weight, b['cross'][part].bias\nreturn b",
        "a class": "class Branch(nn.ModuleDict):\n    pass\n\nshared = {'down': nn.Linear(D, r), 'up': nn.Linear(r, D)}\nout = nn.ModuleDict()\n"
        "for k in ('vision', 'text', 'cross'):\n    own = {'down': nn.Linear(D, r), 'up': nn.Linear(r, D)}\n"
        "    out[k] = Branch({p: shared[p] if share in ('all', p) else own[p] for p in own})\nreturn out",
    },
)  # fmt: skip

SHARED_GRADIENT = Exercise(
    "a3", "shared-gradient", "shared-gradient-test", "shared_gradient", "shared_gradient",
    (
        Wrong("the mean", "return total", "return total / len(ups)", "they add up"),
        Wrong("no mask", " * (h @ W.T > 0)", "", "mask is missing"),
        Wrong("the last branch alone", "total = total + dz.T @ h", "total = dz.T @ h", "only the last branch"),
        Wrong("the first branch alone", "return total", "return ((grads[0] @ ups[0]) * (hidden[0] @ W.T > 0)).T @ hidden[0]", "only the first branch"),
        Wrong("one too few", "zip(hidden, ups, grads)", "list(zip(hidden, ups, grads))[:2]", "one branch is missing"),
        Wrong("one up for all", "g @ U", "g @ ups[0]", "the up-projection of the first"),
        Wrong("sign", "return total", "return -total", "sign is wrong"),
        Wrong("divided by tokens", "dz.T @ h", "dz.T @ h / len(h)", "number of tokens"),
        Wrong("ReLU of the gradient", "(g @ U) * (h @ W.T > 0)", "torch.relu(g @ U)", "ReLU is applied to the gradient"),
        Wrong("z for its mask", "(h @ W.T > 0)", "torch.relu(h @ W.T)", "value of z"),
        Wrong("transposed", "return total", "return total.T", "transposed"),
        Wrong("in place", "total = torch.zeros_like(W)", "total = W.zero_().clone()", "mask|numbers"),
        Wrong("in place, late", "return total", "hidden[0].zero_()\n    return total", "changed in place", 4),
    ),
    {
        "autograd": "w = W.clone().detach().requires_grad_(True)\nwith torch.enable_grad():\n"
        "    outs = [(h.detach() @ w.t()).relu() @ U.detach().t() for h, U in zip(hidden, ups)]\n"
        "return torch.autograd.grad(outs, w, grad_outputs=[g.detach() for g in grads])[0]",
        "einsum": "def one(h, U, g):\n    mask = torch.einsum('nd,rd->nr', h, W).gt(0)\n"
        "    return torch.einsum('nk,kr,nr,nd->rd', g, U, mask.to(g.dtype), h)\n\nreturn sum(map(one, hidden, ups, grads))",
        "joined": "H = torch.cat(hidden)\nback = torch.cat([g @ U for g, U in zip(grads, ups)])\nback = torch.where(H @ W.T > 0, back, torch.zeros_like(back))\nreturn back.T @ H",
        "token by token": "dW = torch.zeros_like(W)\nfor b in range(len(ups)):\n    for i in range(hidden[b].shape[0]):\n        x = hidden[b][i]\n"
        "        on = (W @ x > 0).to(W.dtype)\n        dW = dW + torch.outer(on * (ups[b].T @ grads[b][i]), x)\nreturn dW",
    },
)  # fmt: skip

WIDEST = Exercise(
    "a3", "widest", "widest-test", "widest", "widest",
    (
        Wrong("no up biases", " - ups * D\n", "\n", "biases of the ups"),
        Wrong("no LayerNorm", "budget - 2 * D - ups * D", "budget - ups * D", "LayerNorm is not counted"),
        Wrong("neither", "budget - 2 * D - ups * D", "budget", "LayerNorm and the biases"),
        Wrong("three LayerNorms", "budget - 2 * D", "budget - 6 * D", "one LayerNorm for all"),
        Wrong("no down bias", "downs * (D + 1)", "downs * D", "bias of a down"),
        Wrong("exchanged", "", "rest = budget - 2 * D - downs * D\nreturn max(0, rest // (ups * (D + 1) + downs * D))", "exchanged"),
        Wrong("one of each", "", "return max(0, (budget - 3 * D) // (2 * D + 1))", "are not used"),
        Wrong("rounded up", "rest // (downs * (D + 1) + ups * D)", "-(-rest // (downs * (D + 1) + ups * D))", "wider than the budget"),
        Wrong("strictly below", "rest // ", "(rest - 1) // ", "may be used up"),
        Wrong("a float", "rest // (", "rest / (", "whole number"),
        Wrong("at least one", "max(0,", "max(1,", "the answer is 0"),
        Wrong("negative", "return max(0, rest // (downs * (D + 1) + ups * D))", "return rest // (downs * (D + 1) + ups * D)", "the answer is 0"),
    ),
    {
        "a loop": "size = lambda r: 2 * D + downs * (D * r + r) + ups * (r * D + D)\nr = 0\nwhile size(r + 1) <= budget:\n    r += 1\nreturn r",
        "a range": "fit = [r for r in range(1, budget + 1) if 2 * D + downs * r * (D + 1) + ups * D * (r + 1) <= budget]\nreturn fit[-1] if fit else 0",
        "bisection": "lo, hi = 0, max(1, budget)\nwhile lo < hi:\n    mid = (lo + hi + 1) // 2\n"
        "    if 2 * D + downs * (D * mid + mid) + ups * (mid * D + D) <= budget:\n        lo = mid\n    else:\n        hi = mid - 1\nreturn lo",
        "math.floor": "import math\nfixed, per = D * (2 + ups), downs + D * (downs + ups)\nreturn 0 if budget < fixed + per else math.floor((budget - fixed) / per)",
    },
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------- assignment 4

BOTH = "up_cross(z) + up_text(z)"
CROSS_BRANCH = Exercise(
    "a4", "cross-branch", "cross-branch-test", "cross_branch", "cross_branch",
    (
        Wrong("text up missing", BOTH, "up_cross(z)", "text up-projection is missing"),
        Wrong("own up missing", BOTH, "up_text(z)", "own up-projection is missing"),
        Wrong("own up twice", BOTH, "up_cross(z) + up_cross(z)", "added twice"),
        Wrong("text bias missing", BOTH, "up_cross(z) + z @ up_text.weight.T", "bias of the text"),
        Wrong("own bias missing", BOTH, "z @ up_cross.weight.T + up_text(z)", "bias of the own"),
        Wrong("LN_x skipped", "added = norm_cross(added)", "pass", "LN_x is skipped"),
        Wrong("LN_x on each", "added = norm_cross(added)", "added = norm_cross(up_cross(z)) + norm_cross(up_text(z))", "each part by itself"),
        Wrong("LN_x on one", "added = norm_cross(added)", "added = norm_cross(up_cross(z)) + up_text(z)", "only the own part"),
        Wrong("scale in LN_x", "", "z = torch.relu(down(norm(h)))\nadded = s * (up_cross(z) + up_text(z))\n"
              "return added if norm_cross is None else norm_cross(added)", "inside of LN_x"),
        Wrong("no scale", "return s * added", "return added", "scale is missing"),
        Wrong("own part scaled alone", "", "z = torch.relu(down(norm(h)))\nif norm_cross is None:\n    return s * up_cross(z) + up_text(z)\n"
              "return s * norm_cross(up_cross(z) + up_text(z))", "only the own part"),
        Wrong("no ReLU", "torch.relu(down(norm(h)))", "down(norm(h))", "ReLU between down and up"),
        Wrong("ReLU behind the sum", BOTH, f"torch.relu({BOTH})", "ReLU behind the sum"),
        Wrong("LN skipped", "norm(h)", "h", "LayerNorm before the down"),
        Wrong("input added", "return s * added", "return h + s * added", "input is added"),
        Wrong("text up detached", "up_text(z)", "up_text(z).detach()", "no gradient reaches `up_text|gradient of", 5),
        Wrong("the mean", BOTH, f"({BOTH}) / 2", "expected the sum"),
    ),
    {
        "one matrix": "W, b = up_cross.weight + up_text.weight, up_cross.bias + up_text.bias\n"
        "out = nn.functional.linear(nn.functional.relu(down(norm(h))), W, b)\nreturn s * (norm_cross(out) if norm_cross else out)",
        "einsum": "z = torch.einsum('...d,rd->...r', norm(h), down.weight).add(down.bias).clamp(min=0)\n"
        "both = sum(torch.einsum('...r,dr->...d', z, u.weight) + u.bias for u in (up_text, up_cross))\n"
        "last = norm_cross or nn.Identity()\nreturn last(both) * s",
        "nn.Sequential": "z = nn.Sequential(norm, down, nn.ReLU())(h)\nx = torch.stack([up(z) for up in (up_cross, up_text)]).sum(0)\n"
        "return torch.mul(x if norm_cross is None else norm_cross(x), s)",
        "joined": "x = down(norm(h))\nz = x * (x > 0)\nW = torch.cat([up_cross.weight, up_text.weight], dim=1)\n"
        "y = torch.cat([z, z], dim=-1) @ W.T + up_cross.bias + up_text.bias\nif norm_cross is None:\n    return s * y\n"
        "return s * nn.functional.layer_norm(y, norm_cross.normalized_shape, norm_cross.weight, norm_cross.bias, norm_cross.eps)",
    },
)  # fmt: skip

OUT = "return feed_forward(c) + A_text(a) + A_cross(c)"
MULTIMODAL = Exercise(
    "a4", "multimodal-layer", "multimodal-layer-test", "multimodal_layer", "multimodal_layer",
    (
        Wrong("query residual from c", OUT, "return feed_forward(c) + A_text(c) + A_cross(c)", "query residual reads c"),
        Wrong("no query residual", OUT, "return feed_forward(c) + A_cross(c)", "query residual is missing"),
        Wrong("no cross branch", OUT, "return feed_forward(c) + A_text(a)", "cross branch is missing"),
        Wrong("cross from a", OUT, "return feed_forward(c) + A_text(a) + A_cross(a)", "cross branch reads a"),
        Wrong("exchanged", OUT, "return feed_forward(c) + A_text(c) + A_cross(a)", "exchanged"),
        Wrong("text from x", OUT, "return feed_forward(c) + A_text(x) + A_cross(c)", "A_text reads x"),
        Wrong("before the feed-forward part", OUT, "return feed_forward(c + A_text(a) + A_cross(c))", "before the feed-forward part; they"),
        Wrong("text before it", OUT, "return feed_forward(c + A_text(a)) + A_cross(c)", "A_text is added before"),
        Wrong("cross behind it", OUT, "f = feed_forward(c)\n    return f + A_text(a) + A_cross(f)", "what the feed-forward part gives"),
        Wrong("residual twice", OUT, "return c + feed_forward(c) + A_text(a) + A_cross(c)", "residual is added twice"),
        Wrong("feed-forward from a", OUT, "return feed_forward(a) + A_text(a) + A_cross(c)", "feed-forward part reads a"),
        Wrong("query residual twice", OUT, "return feed_forward(c) + A_text(a) + A_cross(c) + A_text(a)", "query residual is added twice"),
        Wrong("adapters detached", OUT, "return feed_forward(c) + A_text(a).detach() + A_cross(c)", "gradient of `x` is wrong", 5),
    ),
    {
        "one expression": "a = self_attention(x)\nreturn A_text(a) + (feed_forward(a) if e is None else (lambda c: feed_forward(c) + A_cross(c))(cross_attention(a, e)))",
        "a sum": "before = self_attention(x)\nstate, terms = before, [A_text(before)]\nif e is not None:\n    state = cross_attention(before, e)\n"
        "    terms.append(A_cross(state))\nreturn torch.stack([feed_forward(state), *terms]).sum(dim=0)",
        "helper": "def core(query, context):\n    return query if context is None else cross_attention(query, context)\n\nq = self_attention(x)\nc = core(q, e)\n"
        "y = feed_forward(c) + A_text(q)\nreturn y if e is None else y + A_cross(c)",
        "out of place": "a = self_attention(x)\nc = a if e is None else cross_attention(a, e)\nout = feed_forward(c).clone()\nout += A_text(a)\n"
        "if e is not None:\n    out += A_cross(c)\nreturn out",
    },
)  # fmt: skip

TEXT = "return feed_forward(a) + A_text(a)\n"
TEXT_ONLY = Exercise(
    "a4", "multimodal-layer", "text-only-test", "text_only", "multimodal_layer",
    (
        Wrong("cross branch there", TEXT, "return feed_forward(a) + A_text(a) + A_cross(a)\n", "cross branch is there"),
        Wrong("no text adapter", TEXT, "return feed_forward(a)\n", "text adapter is missing"),
        Wrong("text from x", TEXT, "return feed_forward(a) + A_text(x)\n", "text adapter reads x"),
        Wrong("before the feed-forward part", TEXT, "return feed_forward(a + A_text(a))\n", "before the feed-forward part"),
        Wrong("the cross adapter instead", TEXT, "return feed_forward(a) + A_cross(a)\n", "in place of the text adapter"),
        Wrong("self-attention skipped", TEXT, "return feed_forward(x) + A_text(x)\n", "self-attention is skipped"),
        Wrong("residual twice", TEXT, "return a + feed_forward(a) + A_text(a)\n", "residual is added twice"),
        Wrong("no feed-forward part", TEXT, "return a + A_text(a)\n", "feed-forward part is missing"),
        Wrong("e not looked at", "if e is None:", "if False:", ""),
    ),
    MULTIMODAL.right,
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------- assignment 5

TEXT_LINE, FRAME_LINE = (
    "text = text / text.norm(dim=-1, keepdim=True)",
    "frames = frames / frames.norm(dim=-1, keepdim=True)",
)
COSINES = "(frames @ text[:, :, None])[:, :, 0].detach()"
FRAME_WEIGHTS = Exercise(
    "a5", "frame-weights", "frame-weights-test", "frame_weights", "frame_weights",
    (
        Wrong("nothing normalised", f"{TEXT_LINE}\n    {FRAME_LINE}", "pass", "neither text nor frames"),
        Wrong("frames not normalised", FRAME_LINE, "pass", "the frames are not normalised"),
        Wrong("text not normalised", TEXT_LINE, "pass", "the text is not normalised"),
        Wrong("softmax", f"return {COSINES}", f"return torch.softmax({COSINES}, dim=-1)", "softmax belongs to"),
        Wrong("normalised over frames", "frames.norm(dim=-1,", "frames.norm(dim=1,", "normalised over the frames"),
        Wrong("text over clips", "text.norm(dim=-1,", "text.norm(dim=0,", "over the clips"),
        Wrong("contrastive temperature", f"return {COSINES}", f"return {COSINES} / 0.07", "contrastive temperature"),
        Wrong("absolute", f"return {COSINES}", f"return {COSINES}.abs()", "made positive"),
        Wrong("cut off", f"return {COSINES}", f"return {COSINES}.relu()", "cut off at zero"),
        Wrong("first text for all", "text[:, :, None]", "text[:1, :, None]", "first clip's text"),
        Wrong("mean", f"return {COSINES}", f"return {COSINES} / text.shape[-1]", "mean is taken over the features"),
        Wrong("gradient", ".detach()", "", "none should: detach", 4),
        Wrong("text detached alone", "", "import torch.nn.functional as F\nreturn torch.einsum('bp,bfp->bf', F.normalize(text.detach(), dim=-1),"
              " F.normalize(frames, dim=-1))", "gradient flows into `frames`", 4),
        Wrong("in place", TEXT_LINE, "text /= text.norm(dim=-1, keepdim=True)", "changed in place", 3),
        Wrong("shape kept", COSINES, "(frames @ text[:, :, None]).detach()", "shape is"),
    ),
    {
        "normalize": "import torch.nn.functional as F\nt, v = F.normalize(text, dim=-1), F.normalize(frames, dim=-1)\n"
        "return torch.einsum('bp,bfp->bf', t, v).detach()",
        "cosine_similarity": "return torch.cosine_similarity(text.unsqueeze(1), frames, dim=2).detach()",
        "no_grad": "with torch.no_grad():\n    dots = (text[:, None, :] * frames).sum(dim=-1)\n"
        "    return dots / (text.norm(dim=-1)[:, None] * frames.norm(dim=-1))",
        "a loop": "rows = []\nfor t, clip in zip(text.detach(), frames.detach()):\n    rows.append(torch.stack([t.dot(v) / (t.norm() * v.norm()) for v in clip]))\n"
        "return torch.stack(rows)",
    },
)  # fmt: skip

SOFTMAX = "frames * torch.softmax(w.detach() / temperature, dim=-1)"
MULTIPLIERS = Exercise(
    "a5", "multipliers", "multipliers-test", "multipliers", "multipliers",
    (
        Wrong("no F", SOFTMAX, SOFTMAX.removeprefix("frames * "), "factor F is missing"),
        Wrong("over clips", "dim=-1", "dim=0", "over the clips"),
        Wrong("over everything", SOFTMAX, "frames * torch.softmax((w.detach() / temperature).flatten(), 0).view(w.shape)", "of all clips"),
        Wrong("number of clips", "w.shape[-1]", "w.shape[0]", "number of clips"),
        Wrong("times temperature", "/ temperature", "* temperature", "multiplied by the temperature"),
        Wrong("no temperature", " / temperature", "", "temperature is not used"),
        Wrong("always 4", "/ temperature", "/ 4", "always 4"),
        Wrong("no softmax", "torch.softmax(w.detach() / temperature, dim=-1)", "w.detach() / temperature", "softmax is missing"),
        Wrong("F inside", SOFTMAX, "torch.softmax(frames * w.detach() / temperature, dim=-1)", "inside of the softmax"),
        Wrong("sigmoid", "torch.softmax(w.detach() / temperature, dim=-1)", "torch.sigmoid(w.detach() / temperature)", "sigmoid"),
        Wrong("logarithms", "torch.softmax(", "torch.log_softmax(", "logarithms"),
        Wrong("gradient", "w.detach()", "w", "none should: detach", 4),
    ),
    {
        "functional": "import torch.nn.functional as F\nm = F.softmax(w / temperature, dim=w.dim() - 1) * w.size(-1)\nreturn m.detach()",
        "exp": "e = torch.exp(w.detach() / temperature)\nreturn e / e.mean(dim=-1, keepdim=True)",
        "no_grad": "with torch.no_grad():\n    logits = w.div(temperature)\n    return logits.softmax(-1).mul(logits.shape[-1])",
        "logsumexp": "x = (w / temperature).detach()\nimport math\nreturn torch.exp(x - torch.logsumexp(x, -1, keepdim=True) + math.log(x.shape[-1]))",
        "nn.Softmax": "layer = torch.nn.Softmax(dim=-1)\nF = w.shape[-1]\nreturn F * layer(w.data / temperature)",
    },
)  # fmt: skip

WEIGHED = "weighed = m[:, :, None, None] * frames[:, :, 1:]"
WEIGH_KEYS = Exercise(
    "a5", "weigh-keys", "weigh-keys-test", "weigh_keys", "weigh_keys",
    (
        Wrong("CLS, too", "torch.cat([frames[:, :, :1], weighed], dim=2)", "(m[:, :, None, None] * frames)", "CLS tokens are weighed, too"),
        Wrong("CLS alone", "torch.cat([frames[:, :, :1], weighed], dim=2)",
              "torch.cat([m[:, :, None, None] * frames[:, :, :1], frames[:, :, 1:]], dim=2)", "only the CLS tokens"),
        Wrong("one CLS a clip", "", "factor = m.repeat_interleave(keys.shape[1] // m.shape[1], dim=1)[:, :, None]\n"
              "return torch.cat([keys[:, :1], (factor * keys)[:, 1:]], dim=1)", "only the first of the clip"),
        Wrong("token-major", "", "B, N, D = keys.shape\nF = m.shape[1]\nx = keys.reshape(B, N // F, F, D)\n"
              "x = torch.cat([x[:, :1], x[:, 1:] * m[:, None, :, None]], dim=1)\nreturn x.reshape(B, N, D)", "token-major"),
        Wrong("repeat", "", "n = keys.shape[1] // m.shape[1]\npatch = (torch.arange(keys.shape[1]) % n > 0)[:, None]\n"
              "return torch.where(patch, keys * m.repeat(1, n)[:, :, None], keys)", "repeated token by token"),
        Wrong("added", "m[:, :, None, None] * frames[:, :, 1:]", "m[:, :, None, None] + frames[:, :, 1:]", "m is added"),
        Wrong("first clip's m", "m[:, :, None, None]", "m[:1, :, None, None]", "first clip's multipliers"),
        Wrong("divided", "m[:, :, None, None] * frames[:, :, 1:]", "frames[:, :, 1:] / m[:, :, None, None]", "divides by m"),
        Wrong("squared", "m[:, :, None, None] *", "m[:, :, None, None] ** 2 *", "applied twice"),
        Wrong("last token spared", "torch.cat([frames[:, :, :1], weighed], dim=2)",
              "torch.cat([m[:, :, None, None] * frames[:, :, :-1], frames[:, :, -1:]], dim=2)", "the last token of each frame"),
        Wrong("CLS lost", "frames[:, :, :1], weighed", "0 * frames[:, :, :1], weighed", "CLS tokens are lost"),
        Wrong("m detached", "m[:, :, None, None]", "m.detach()[:, :, None, None]", "no gradient reaches `m`", 5),
        Wrong("in place", "", "n = keys.shape[1] // m.shape[1]\nfor f in range(m.shape[1]):\n"
              "    keys[:, f * n + 1 : (f + 1) * n] *= m[:, f, None, None]\nreturn keys", "changed in place", 4),
    ),
    {
        "repeat_interleave": "n = keys.shape[1] // m.shape[1]\nfactor = m.repeat_interleave(n, 1)\npatch = torch.arange(keys.shape[1]) % n != 0\n"
        "return keys * torch.where(patch, factor, torch.ones_like(factor)).unsqueeze(-1)",
        "einsum": "B, F = m.shape\nx = keys.reshape(B, F, -1, keys.shape[-1])\nw = torch.einsum('bf,bfnd->bfnd', m, x)\n"
        "return torch.cat((x[:, :, 0:1], w[:, :, 1:]), 2).flatten(1, 2)",
        "frame by frame": "parts = []\nfor f, frame in enumerate(keys.chunk(m.shape[1], dim=1)):\n    parts += [frame[:, :1], frame[:, 1:] * m[:, f].view(-1, 1, 1)]\n"
        "return torch.cat(parts, dim=1)",
        "a clone": "n = keys.size(1) // m.size(1)\nout = keys.clone().view(m.size(0), m.size(1), n, -1)\n"
        "out[:, :, 1:] = keys.reshape(out.shape)[:, :, 1:] * m[..., None, None]\nreturn out.view(keys.shape)",
    },
)  # fmt: skip

# ------------------------------------------------------------------------------------------------------- assignment 6

SUMMARISE = Exercise(
    "a6", "summarise", "summarise-test", "summarise", "summarise",
    (
        Wrong("divided by n", "/ (n - 1)) if", "/ n) if", "divided by n; a sample"),
        Wrong("variance", "math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))", "sum((v - mean) ** 2 for v in values) / (n - 1)", "root is missing"),
        Wrong("standard error", "/ (n - 1)) if", "/ (n - 1) / n) if", "standard error"),
        Wrong("mean of all", "len(values), sum(values) / len(values)", "len(values), sum(r['score'] for r in rows) / len(rows)", "mean of all rows"),
        Wrong("sum", "sum(values) / len(values)\n", "sum(values)\n", "is the sum"),
        Wrong("the largest", "sum(values) / len(values)\n", "max(values)\n", "is the largest"),
        Wrong("zero spread of one", "else None", "else 0.0", "expected None"),
        Wrong("number of all", "(mean, deviation, n)", "(mean, deviation, len(rows))", "seeds, and not"),
        Wrong("a list", "return summary", "return list(summary.values())", "expected a dictionary"),
        Wrong("rows eaten", "return summary", "rows.clear()\n    return summary", "rows were changed", 4),
        Wrong("the last score alone", "scores.setdefault(row[\"config\"], []).append(row[\"score\"])", "scores[row['config']] = [row['score']]", "seeds, and not"),
        Wrong("two of three", "(mean, deviation, n)", "(mean, deviation)", "three things"),
    ),
    {
        "statistics": "import statistics as st\nnames = {r['config'] for r in rows}\nout = {}\nfor k in names:\n    x = [r['score'] for r in rows if r['config'] == k]\n"
        "    out[k] = (st.fmean(x), st.stdev(x) if len(x) >= 2 else None, len(x))\nreturn out",
        "numpy": "import numpy as np\nout = {}\nfor k in sorted({r['config'] for r in rows}):\n    x = np.array([r['score'] for r in rows if r['config'] == k])\n"
        "    out[k] = (x.mean(), x.std(ddof=1) if x.size > 1 else None, x.size)\nreturn out",
        "torch": "from collections import defaultdict\ngroups = defaultdict(list)\nfor r in rows:\n    groups[r['config']] += [r['score']]\n"
        "def stats(v):\n    t = torch.tensor(v, dtype=torch.float64)\n    return t.mean().item(), (None if len(v) < 2 else t.std().item()), len(v)\n\nreturn {k: stats(v) for k, v in groups.items()}",
        "pandas": "import pandas as pd\ng = pd.DataFrame(rows).groupby('config')['score']\n"
        "return {k: (x.mean(), None if len(x) == 1 else x.std(), len(x)) for k, x in g}",
    },
)  # fmt: skip

COMPARE = Exercise(
    "a6", "compare", "compare-test", "compare", "compare",
    (
        Wrong("mean alone", "abs(mean) <= 2 * error", "mean == 0", "must exceed two"),
        Wrong("never tells", "abs(mean) <= 2 * error", "True", 'expected "better"'),
        Wrong("one standard error", "2 * error", "error", "two standard errors"),
        Wrong("deviation for the error", " / math.sqrt(n)\n", "\n", 'expected "better"'),
        Wrong("divided by n", "/ math.sqrt(n)", "/ n", "1.93|must exceed two"),
        Wrong("sample by n", "(n - 1)) / math.sqrt(n)", "n) / math.sqrt(n)", "must exceed two|1.93"),
        Wrong("two seeds are enough", "if n < 3", "if n < 2", "Two seeds are too few"),
        Wrong("wrong way round", '"better" if mean > 0', '"better" if mean < 0', 'expected "better"|expected "worse"'),
        Wrong("never worse", '"better" if mean > 0 else "worse"', '"better"', 'expected "worse"'),
        Wrong("not paired", "", "import statistics as st\nx, y = ([r['score'] for r in rows if r['config'] == k] for k in (a, b))\n"
              "if min(len(x), len(y)) < 3:\n    return 'cannot tell'\nm = st.mean(x) - st.mean(y)\n"
              "e = (st.variance(x) / len(x) + st.variance(y) / len(y)) ** 0.5\n"
              "return 'better' if m > 2 * e else 'worse' if m < -2 * e else 'cannot tell'", "seed by seed"),
        Wrong("paired by place", "", "import statistics as st\nx, y = ([r['score'] for r in rows if r['config'] == k] for k in (a, b))\n"
              "d = [p - q for p, q in zip(x, y)]\nif len(d) < 3:\n    return 'cannot tell'\nm, e = st.mean(d), st.stdev(d) / len(d) ** 0.5\n"
              "return 'better' if m > 2 * e else 'worse' if m < -2 * e else 'cannot tell'", "Only seeds that both have"),
        Wrong("three standard errors", "2 * error", "3 * error", 'expected "better"'),
    ),
    {
        "statistics": "import statistics as st\nof = {(r['config'], r['seed']): r['score'] for r in rows}\n"
        "d = [of[a, s] - of[b, s] for s in {k[1] for k in of} if (a, s) in of and (b, s) in of]\nif len(d) <= 2:\n    return 'cannot tell'\n"
        "m, se = st.mean(d), st.stdev(d) / len(d) ** 0.5\nreturn 'better' if m > 2 * se else 'worse' if m < -2 * se else 'cannot tell'",
        "numpy": "import numpy as np\nA = {r['seed']: r['score'] for r in rows if r['config'] == a}\nB = {r['seed']: r['score'] for r in rows if r['config'] == b}\n"
        "common = sorted(A.keys() & B.keys())\nif len(common) < 3:\n    return 'cannot tell'\nd = np.array([A[s] - B[s] for s in common])\n"
        "bar = 2 * d.std(ddof=1) / np.sqrt(d.size)\nif d.mean() > bar:\n    return 'better'\nif -d.mean() > bar:\n    return 'worse'\nreturn 'cannot tell'",
        "torch": "A, B = ({r['seed']: float(r['score']) for r in rows if r['config'] == k} for k in (a, b))\n"
        "d = torch.tensor([A[s] - B[s] for s in A if s in B], dtype=torch.float64)\nif d.numel() >= 3:\n    limit = 2 * d.std() / d.numel() ** 0.5\n"
        "    if d.mean() > limit:\n        return 'better'\n    if d.mean() < -limit:\n        return 'worse'\nreturn 'cannot tell'",
        "pandas": "import pandas as pd\nt = pd.DataFrame(rows).pivot_table(index='seed', columns='config', values='score', dropna=False)\n"
        "d = (t[a] - t[b]).dropna()\nn = len(d)\nif n < 3 or not abs(d.mean()) > 2 * d.std() / n**0.5:\n    return 'cannot tell'\n"
        "return 'better' if d.mean() > 0 else 'worse'",
    },
)  # fmt: skip

EXERCISES = (
    LAYER_NORM, ADAPTER, START, FREEZE, INSERT, COUNT, BUILD, SHARED_GRADIENT, WIDEST, CROSS_BRANCH, MULTIMODAL, TEXT_ONLY,
    FRAME_WEIGHTS, MULTIPLIERS, WEIGH_KEYS, SUMMARISE, COMPARE,
)  # fmt: skip
