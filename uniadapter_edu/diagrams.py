"""Architecture diagrams, drawn by code in one visual language. Like `viz`, every function returns a `Figure`.

Grey is frozen, black is shared by all branches, and vision, text and cross have `viz.COLOURS`. Data flows upwards or to
the right. `canvas`, `box` and `arrow` are what the diagrams are made of; their unit is a tenth of an inch.
"""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

from uniadapter_edu.viz import COLOURS

FROZEN, PALE, SHARED, LINE = "#d9d9d9", "#f1f1f1", "#333333", "#555555"


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty page of `width` x `height` tenths of an inch."""
    figure = Figure(figsize=(width / 10, height / 10), layout="constrained", dpi=100)
    axes = figure.subplots()
    axes.set(xlim=(0, width), ylim=(0, height), aspect="equal")
    axes.axis("off")
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, face=FROZEN, ink="black", size=9):
    """A rounded box with its lower left corner at (x, y)."""
    style = "round,pad=0.02,rounding_size=1"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=face, edgecolor="none", zorder=2))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color=ink, zorder=3)


def arrow(axes: Axes, start: tuple, end: tuple, colour=LINE, bend: float = 0.0, head: bool = True):
    """An arrow from `start` to `end`; without a head it is a line."""
    look = {"arrowstyle": "-|>" if head else "-", "color": colour, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=look | {"connectionstyle": f"arc3,rad={bend}"}, zorder=4)


def plus(axes: Axes, x: float, y: float, colour=LINE):
    """Where two streams are added."""
    axes.add_patch(Circle((x, y), 1.5, facecolor="white", edgecolor=colour, linewidth=1.4, zorder=5))
    axes.text(x, y - 0.1, "+", ha="center", va="center", fontsize=12, color=colour, zorder=6)


def _trapezoid(axes: Axes, x: float, width: float, left: float, right: float, middle: float, face: str, edge="none"):
    """A linear map, as high on either side as its input and its output are wide."""
    corners = [(x, middle - left / 2), (x, middle + left / 2), (x + width, middle + right / 2)]
    corners += [(x + width, middle - right / 2)]
    axes.add_patch(Polygon(corners, facecolor=face, edgecolor=edge, linewidth=1.6, zorder=2))


def blip() -> Figure:
    """BLIP's three encoders and the two ways in which they compare a picture with a sentence."""
    figure, axes = canvas(90, 44)
    towers = (("text", 3, "text encoder", "sentence"), ("vision", 33, "vision encoder", "picture"))
    for branch, x, title, below in (*towers, ("cross", 63, "multimodal encoder", "sentence")):
        box(axes, x, 14, 24, 11, title, FROZEN, size=10.5)
        axes.text(x + 12, 1, below, ha="center", fontsize=10)
        arrow(axes, (x + 12, 4), (x + 12, 14), COLOURS[branch])
    for x, branch, vector in ((15, "text", "$t$"), (45, "vision", "$v$")):
        arrow(axes, (x, 25), (x, 35), COLOURS[branch])
        axes.text(x + 1.2, 29, f"{vector}: one vector", fontsize=9, color=LINE)
    arrow(axes, (57, 19.5), (63, 19.5), COLOURS["vision"])
    axes.text(60, 20.8, "tokens", ha="center", fontsize=8, color=LINE)
    arrow(axes, (75, 25), (75, 35), COLOURS["cross"])
    box(axes, 8, 35, 44, 6, "contrastive: how close are $t$ and $v$?", PALE, size=10)
    box(axes, 63, 35, 24, 6, "matching: yes or no?", PALE, size=10)
    arrow(axes, (22, 14), (22, 9.5), LINE, head=False)
    arrow(axes, (22, 9.5), (68, 9.5), LINE, head=False)
    arrow(axes, (68, 9.5), (68, 14), LINE)
    label = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    axes.text(32, 9.5, "same layers", ha="center", va="center", fontsize=8.5, color=LINE, bbox=label, zorder=7)
    return figure


def bottleneck(branch: str = "vision") -> Figure:
    """One adapter: D numbers, squeezed through r, back to D, times s, and added to what the frozen layer gives."""
    figure, axes = canvas(82, 31)
    y, colour = 21, COLOURS[branch]
    axes.text(3, y, "$h$", ha="center", va="center", fontsize=13)
    arrow(axes, (5, y), (9, y))
    box(axes, 9, y - 7.5, 6, 15, "LN", SHARED, "white", 10)
    arrow(axes, (15, y), (19, y))
    _trapezoid(axes, 19, 11, 15, 5, y, SHARED)
    axes.text(24, y, "$W_{down}$", ha="center", va="center", fontsize=11, color="white", zorder=3)
    arrow(axes, (30, y), (33, y))
    box(axes, 33, y - 2.5, 8, 5, "ReLU", SHARED, "white", 10)
    arrow(axes, (41, y), (47, y))
    axes.text(44, y + 1.2, "$z$", ha="center", fontsize=12)
    _trapezoid(axes, 47, 11, 5, 15, y, colour)
    axes.text(53, y, f"$W_{{{branch}}}$", ha="center", va="center", fontsize=11, color="white", zorder=3)
    arrow(axes, (58, y), (62, y))
    box(axes, 62, y - 2.5, 6, 5, "$· s$", colour, "white", 12)
    arrow(axes, (68, y), (75.5, y), colour)
    plus(axes, 77, y, colour)
    for x, words in ((12, "$D$ numbers"), (37, "$r$ numbers"), (58, "$D$ numbers")):
        axes.text(x, y - 10, words, ha="center", fontsize=9, color=LINE)
    box(axes, 33, 2, 25, 5, "what the layer computes anyway", FROZEN)
    arrow(axes, (3, y - 2), (3, 4.5), head=False)
    arrow(axes, (3, 4.5), (33, 4.5))
    arrow(axes, (58, 4.5), (77, 4.5), head=False)
    arrow(axes, (77, 4.5), (77, y - 1.6))
    arrow(axes, (77, y + 1.6), (77, y + 7))
    axes.text(77, y + 7.6, "$x'$", ha="center", fontsize=13)
    return figure


def sizes(D: int, r: int) -> Figure:
    """A full D x D map beside a bottleneck of width r, drawn to scale: an area is a number of weights."""
    figure, axes = canvas(74, 30)
    unit, top = 22 / D, 28

    def matrix(x: float, columns: int, rows: int, colour: str):
        width, height = columns * unit, rows * unit
        axes.add_patch(Rectangle((x, top - height), width, height, facecolor=colour, edgecolor="none"))

    matrix(4, D, D, COLOURS["frozen"])
    axes.text(15, 4.5, f"full: $D · D$ = {D * D:,}", ha="center", va="top", fontsize=10)
    axes.text(32, 16, "or", ha="center", fontsize=11, color=LINE)
    matrix(38, D, r, SHARED)
    axes.text(49, top - r * unit - 1, f"down: $D · r$ = {D * r:,}", ha="center", va="top", fontsize=10)
    matrix(66, r, D, COLOURS["vision"])
    axes.text(66 + r * unit / 2, 4.5, f"up: $r · D$ = {D * r:,}", ha="center", va="top", fontsize=10)
    return figure


def places() -> Figure:
    """Where the adapter sits: in a vision block (pre-norm), and in a text layer without images (post-norm)."""
    figure, axes = canvas(88, 62)
    _vision_block(axes, 3)
    _text_layer(axes, 49)
    return figure


def _vision_block(axes: Axes, x: float):
    colour, mid = COLOURS["vision"], x + 9
    box(axes, x - 2, 3, 40, 56, "", PALE)
    axes.text(x + 18, 56, "vision block (pre-norm)", ha="center", va="center", fontsize=10.5, fontweight="bold")
    axes.text(mid, 0.6, "$x$", ha="center", fontsize=12)
    arrow(axes, (mid, 2.6), (mid, 9))
    box(axes, mid - 6, 9, 12, 4.4, "LN 1")
    arrow(axes, (mid, 13.4), (mid, 15.6))
    box(axes, mid - 6, 15.6, 12, 4.4, "attention")
    _residual(axes, mid, 6, 23.2)
    arrow(axes, (mid, 20), (mid, 21.7))
    plus(axes, mid, 23.2)
    axes.text(mid + 2.6, 23.9, "$u$", fontsize=12, color=colour, fontweight="bold")
    arrow(axes, (mid, 24.7), (mid, 31))
    box(axes, mid - 6, 31, 12, 4.4, "LN 2")
    arrow(axes, (mid, 35.4), (mid, 37.6))
    box(axes, mid - 6, 37.6, 12, 4.4, "MLP")
    _residual(axes, mid, 27.4, 47)
    arrow(axes, (mid, 42), (mid, 45.5))
    plus(axes, mid, 47, colour)
    arrow(axes, (mid, 48.5), (mid, 52.5))
    axes.text(mid + 1.2, 50.6, "$x'$", fontsize=12)
    _adapter(axes, mid, 27.4, 47, "$A_{vision}(u)$", colour)


def _text_layer(axes: Axes, x: float):
    colour, mid = COLOURS["text"], x + 9
    box(axes, x - 2, 3, 40, 56, "", PALE)
    axes.text(x + 18, 56, "text layer (post-norm)", ha="center", va="center", fontsize=10.5, fontweight="bold")
    axes.text(mid, 0.6, "$x$", ha="center", fontsize=12)
    arrow(axes, (mid, 2.6), (mid, 9))
    box(axes, mid - 6, 9, 12, 4.4, "self-attention")
    _residual(axes, mid, 6, 16.6)
    arrow(axes, (mid, 13.4), (mid, 15.1))
    plus(axes, mid, 16.6)
    arrow(axes, (mid, 18.1), (mid, 19.8))
    box(axes, mid - 6, 19.8, 12, 4.4, "LN")
    axes.text(mid + 1.2, 25, "$a$", fontsize=12, color=colour, fontweight="bold")
    arrow(axes, (mid, 24.2), (mid, 30))
    box(axes, mid - 6, 30, 12, 4.4, "feed-forward")
    _residual(axes, mid, 27.4, 37.6)
    arrow(axes, (mid, 34.4), (mid, 36.1))
    plus(axes, mid, 37.6)
    arrow(axes, (mid, 39.1), (mid, 40.6))
    box(axes, mid - 6, 40.6, 12, 4.4, "LN")
    arrow(axes, (mid, 45), (mid, 46.5))
    plus(axes, mid, 48, colour)
    arrow(axes, (mid, 49.5), (mid, 53))
    axes.text(mid + 1.2, 51.2, "$x'$", fontsize=12)
    _adapter(axes, mid, 27.4, 48, "$A_{text}(a)$", colour)


def _residual(axes: Axes, mid: float, low: float, high: float):
    """The frozen layer's own shortcut, on the left."""
    left = mid - 8
    arrow(axes, (mid, low), (left, low), head=False)
    arrow(axes, (left, low), (left, high), head=False)
    arrow(axes, (left, high), (mid - 1.6, high))


def _adapter(axes: Axes, mid: float, low: float, high: float, words: str, colour: str):
    """The adapter's detour, on the right: what it reads, and where its output is added."""
    right = mid + 17
    arrow(axes, (mid, low), (right, low), colour, head=False)
    arrow(axes, (right, low), (right, 33.5), colour)
    box(axes, right - 7, 33.5, 14, 5.5, words, colour, "white", 11)
    arrow(axes, (right, 39), (right, high), colour, head=False)
    arrow(axes, (right, high), (mid + 1.6, high), colour)


def parallel_or_sequential() -> Figure:
    """Two places for one adapter: beside the frozen part, reading what it reads, or behind it, reading what it gives."""
    figure, axes = canvas(80, 34)
    colour = COLOURS["vision"]
    for x, title in ((2, "parallel: reads $u$"), (44, "sequential: reads what the MLP gives")):
        box(axes, x - 1, 1, 36, 32, "", PALE)
        axes.text(x + 17, 30.5, title, ha="center", va="center", fontsize=10, fontweight="bold")
    for mid in (13, 61):
        axes.text(mid, 1.8, "$u$", ha="center", fontsize=12)
        arrow(axes, (mid, 4), (mid, 8.5))
        box(axes, mid - 5, 8.5, 10, 5, "MLP(LN $u$)", size=8.5)
        arrow(axes, (mid - 9, 5.6), (mid - 9, 25.5), head=False)
        arrow(axes, (mid, 5.6), (mid - 9, 5.6), head=False)
        arrow(axes, (mid - 9, 25.5), (mid - 1.6, 25.5))
        plus(axes, mid, 25.5, colour)
    arrow(axes, (13, 13.5), (13, 23.9))
    arrow(axes, (13, 5.6), (28, 5.6), colour, head=False)
    arrow(axes, (28, 5.6), (28, 8.5), colour)
    box(axes, 23, 8.5, 10, 5, "$A(u)$", colour, "white", 11)
    arrow(axes, (28, 13.5), (28, 25.5), colour, head=False)
    arrow(axes, (28, 25.5), (14.6, 25.5), colour)
    arrow(axes, (61, 13.5), (61, 23.9))
    arrow(axes, (61, 15.2), (72, 15.2), colour, head=False)
    arrow(axes, (72, 15.2), (72, 17), colour)
    box(axes, 67, 17, 10, 5, "$A(m)$", colour, "white", 11)
    axes.text(59, 15.4, "$m$", fontsize=11, ha="center")
    arrow(axes, (72, 22), (72, 25.5), colour, head=False)
    arrow(axes, (72, 25.5), (62.6, 25.5), colour)
    return figure


def unimodal(vision: int, text: int) -> Figure:
    """The two encoders apart, `vision` blocks and `text` layers with an adapter beside each, and the cosine of v and t."""
    figure, axes = canvas(84, 53)
    for branch, layers, x, layer, vector, below in (
        ("vision", vision, 3, "vision block", "$v$", "picture"),
        ("text", text, 45, "text layer", "$t$", "sentence"),
    ):
        colour, mid = COLOURS[branch], x + 10
        axes.text(mid, 0.4, below, ha="center", fontsize=10)
        arrow(axes, (mid, 3), (mid, 5))
        for i in range(layers):
            y = 5 + 8.6 * i
            box(axes, x, y, 20, 5, f"{layer} {i + 1}")
            arrow(axes, (mid, y + 5), (mid, y + 8.6))
            plus(axes, mid, y + 6.6, colour)
            box(axes, x + 24, y, 11, 5, f"$A_{{{branch}}}$", colour, "white", 10)
            arrow(axes, (x + 20, y + 2.5), (x + 24, y + 2.5), colour)
            arrow(axes, (x + 29.5, y + 5), (x + 29.5, y + 6.6), colour, head=False)
            arrow(axes, (x + 29.5, y + 6.6), (mid + 1.5, y + 6.6), colour)
        top = 5 + 8.6 * layers
        axes.text(mid, top + 0.6, vector, ha="center", fontsize=13, color=colour)
        arrow(axes, (mid, top + 3.6), (mid, 46))
    box(axes, 3, 46, 62, 5.5, "cosine: how close are $v$ and $t$?", PALE, size=10)
    return figure


def sharing() -> Figure:
    """The four ways to share: each of the three branches goes through a down and an up, its own or the one for all."""
    figure, axes = canvas(93, 32)
    ways = (("none", False, False), ("down", True, False), ("up", False, True), ("all", True, True))
    for x, (way, one_down, one_up) in zip((1, 24.2, 47.4, 70.6), ways):
        box(axes, x, 1, 21.6, 30, "", PALE)
        axes.text(x + 10.8, 28.5, f'share = "{way}"', ha="center", va="center", fontsize=9.5, fontweight="bold")
        for y, (branch, h) in zip((22, 14, 6), (("vision", "u"), ("text", "a"), ("cross", "c"))):
            colour = COLOURS[branch]
            axes.text(x + 1.7, y, f"${h}$", ha="center", va="center", fontsize=11, color=colour)
            downs, ups = 14 if one_down else y, 14 if one_up else y
            arrow(axes, (x + 2.8, y), (x + 5, downs), colour)
            arrow(axes, (x + 10, downs), (x + 12, ups), colour)
            arrow(axes, (x + 17, ups), (x + 20, y), colour)
            _trapezoid(axes, x + 5, 5, 6, 2, downs, SHARED if one_down else colour)
            _trapezoid(axes, x + 12, 5, 2, 6, ups, SHARED if one_up else colour)
    return figure


def multimodal() -> Figure:
    """A text layer that looks at an image: three frozen parts in a row, and what the two branches read and add."""
    figure, axes = canvas(92, 38)
    y, text, cross = 17, COLOURS["text"], COLOURS["cross"]
    frozen = ((8, "LN($x$ + SelfAttn $x$)"), (32, "LN($a$ + CrossAttn($a, e$))"), (56, "LN($c$ + FFN $c$)"))
    for x, words in frozen:
        box(axes, x, y - 3, 17, 6, words, size=8.5)
    for start, end in ((4, 8), (25, 32), (49, 56), (73, 76.5), (79.5, 82.5), (85.5, 89)):
        arrow(axes, (start, y), (end, y))
    for x, name, colour in ((2.5, "$x$", LINE), (28.5, "$a$", text), (52.5, "$c$", cross), (90.6, "$x'$", LINE)):
        axes.text(x, y + (1 if name in ("$a$", "$c$") else -0.6), name, ha="center", fontsize=13, color=colour)
    axes.text(40.5, 3, "$e$: the image's tokens", ha="center", fontsize=10, color=COLOURS["vision"])
    arrow(axes, (40.5, 6), (40.5, y - 3), COLOURS["vision"])
    branches = ((28.5, 78, 33, "$A_{text}(a)$", text), (52.5, 84, 26, "$A_{cross}(c)$", cross))
    for start, end, height, words, colour in branches:
        arrow(axes, (start, y + 4), (start, height), colour, head=False)
        arrow(axes, (start, height), (57.5, height), colour)
        arrow(axes, (71.5, height), (end, height), colour, head=False)
        arrow(axes, (end, height), (end, y + 1.5), colour)
        box(axes, 57.5, height - 2.7, 14, 5.4, words, colour, "white", 11)
        plus(axes, end, y, colour)
    return figure


def cross_branch() -> Figure:
    """The third branch: the shared questions asked of c, and two up-projections that answer, its own and the text's."""
    figure, axes = canvas(82, 27)
    y, cross = 13, COLOURS["cross"]
    axes.text(3, y, "$c$", ha="center", va="center", fontsize=13)
    arrow(axes, (5, y), (9, y))
    box(axes, 9, y - 7.5, 6, 15, "LN", SHARED, "white", 10)
    arrow(axes, (15, y), (19, y))
    _trapezoid(axes, 19, 11, 15, 5, y, SHARED)
    axes.text(24, y, "$W_{down}$", ha="center", va="center", fontsize=11, color="white", zorder=3)
    arrow(axes, (30, y), (33, y))
    box(axes, 33, y - 2.5, 8, 5, "ReLU", SHARED, "white", 10)
    axes.text(45, y - 0.8, "$z$", ha="center", fontsize=12)
    for branch, middle in (("cross", y + 6.2), ("text", y - 6.2)):
        colour = COLOURS[branch]
        arrow(axes, (41, y), (47, middle), colour)
        _trapezoid(axes, 47, 11, 4, 11, middle, colour)
        axes.text(53.5, middle, f"$W_{{{branch}}}$", ha="center", va="center", fontsize=11, color="white", zorder=3)
        arrow(axes, (58, middle), (63.2, y + (1.2 if middle > y else -1.2)), colour)
    plus(axes, 64.3, y, cross)
    arrow(axes, (65.8, y), (69, y), cross)
    box(axes, 69, y - 2.5, 6, 5, "$· s$", cross, "white", 12)
    arrow(axes, (75, y), (80, y), cross)
    axes.text(52.5, 0.2, "the text branch's own, used once more", ha="center", fontsize=8.5, color=COLOURS["text"])
    return figure


def starts() -> Figure:
    """Where training starts, in the paper preset and in the authors' code: up-projections of zeros are hollow."""
    figure, axes = canvas(92, 40)
    panels = (("paper()", ("vision", "text", "cross"), False), ("official()", ("text",), True))
    for x, (title, zeros, norm) in zip((1, 48), panels):
        box(axes, x, 4.5, 43, 35, "", PALE)
        axes.text(x + 21.5, 36.5, f"UniAdapterConfig.{title}", ha="center", va="center", fontsize=10, fontweight="bold")
        axes.text(x + 3, 19.5, "$z$", ha="center", va="center", fontsize=13)
        for branch, y in (("vision", 29), ("text", 19.5), ("cross", 10)):
            colour, empty = COLOURS[branch], branch in zeros
            arrow(axes, (x + 4.6, 19.5), (x + 10, y), colour)
            _trapezoid(axes, x + 10, 9, 3.5, 8, y, "white" if empty else colour, colour)
            words = f"$W_{{{branch}}}$"
            axes.text(x + 15, y, words, ha="center", va="center", fontsize=9.5, color=colour if empty else "white")
            end = x + 34
            if branch == "cross":
                arrow(axes, (x + 19, y), (x + 22, y), colour)
                plus(axes, x + 23.5, y, colour)
                if norm:
                    arrow(axes, (x + 25, y), (x + 27.2, y), colour)
                    box(axes, x + 27.2, y - 2.5, 4.6, 5, "LN$_x$", colour, "white", 8.5)
                arrow(axes, (x + (31.8 if norm else 25), y), (end, y), colour)
            else:
                arrow(axes, (x + 19, y), (end, y), colour)
            axes.text(end + 4.5, y, f"$A_{{{branch}}} / s$", ha="center", va="center", fontsize=11, color=colour)
        arrow(axes, (x + 23.5, 19.5), (x + 23.5, 11.6), COLOURS["text"])
    axes.text(46, 1, "hollow: starts at zero        filled: starts at random", ha="center", fontsize=9, color=LINE)
    return figure


def frames(count: int = 3, patches: int = 4) -> Figure:
    """A clip: every frame through the one vision encoder, all tokens in one row, its feature from the frames' CLS."""
    figure, axes = canvas(90, 44)
    wide, colour = 84 / count, COLOURS["vision"]
    side = (wide - 6) / (patches + 1)
    for f in range(count):
        x = 3 + wide * f
        mid = x + wide / 2 - 1
        axes.text(mid, 0.6, f"frame {f + 1}", ha="center", fontsize=10)
        arrow(axes, (mid, 3.2), (mid, 7))
        box(axes, x, 7, wide - 2, 6, "vision encoder")
        arrow(axes, (mid, 13), (mid, 17))
        for token in range(patches + 1):
            left = x + 2 + side * token
            face = SHARED if token == 0 else colour
            axes.add_patch(Rectangle((left, 17), side - 0.7, 4, facecolor=face, edgecolor="none", zorder=2))
        axes.text(x + 2 + side / 2 - 0.3, 22, "CLS", ha="center", fontsize=8, color=SHARED)
        axes.text(
            x + 2 + side * (patches / 2 + 1),
            22,
            f"patches: keys $· m_{{{f + 1}}}$",
            ha="center",
            fontsize=9,
            color=colour,
        )
        arrow(axes, (mid, 25), (mid, 30), COLOURS["cross"])
    for f in range(1, count):
        axes.text(2 + wide * f, 9.6, "same", ha="center", fontsize=7.5, color=LINE, zorder=6)
    box(axes, 3, 30, 84 - 2, 5.5, "cross-attention: the words ask all $F · n$ tokens at once", PALE, size=10)
    box(
        axes,
        3,
        37.5,
        84 - 2,
        5.5,
        "from the CLS alone, the clip's feature $v$: their mean, projected, of length 1",
        PALE,
        size=10,
    )
    return figure


def decoders() -> Figure:
    """The two tasks whose decoder speaks: their towers, what looks at what, and the branches that adapt each tower."""
    figure, axes = canvas(92, 51)
    both = ("text", "cross")
    for y, title in ((48, "answering"), (21, "captioning")):
        axes.text(4, y, title, fontsize=10.5, fontweight="bold", va="center")
    _tower(axes, 4, 32, "vision encoder", ("vision",), "picture")
    _tower(axes, 35, 32, "question encoder", both, "question")
    _tower(axes, 66, 32, "answer decoder", both, "words so far")
    _tower(axes, 4, 5, "vision encoder", ("vision",), "picture")
    _tower(axes, 66, 5, "caption decoder", both, "words so far")
    looks = ((26, 35, 40, "$e$", "vision"), (57, 66, 40, "$q$", "cross"), (26, 66, 13, "$e$", "vision"))
    for start, end, y, name, branch in looks:
        arrow(axes, (start, y), (end, y), COLOURS[branch])
        axes.text((start + end) / 2 - 0.5, y + 1, name, ha="center", fontsize=12, color=COLOURS[branch])
    for y in (45, 18):
        arrow(axes, (77, y), (77, y + 2.8), COLOURS["cross"])
        axes.text(77, y + 3.2, "next word", ha="center", fontsize=10)
    return figure


def _tower(axes: Axes, x: float, y: float, title: str, branches: tuple[str, ...], below: str):
    """A frozen tower, the branches that its layers have, and what it reads."""
    box(axes, x, y, 22, 13, "", PALE)
    box(axes, x + 1.5, y + 6.5, 19, 5, title, FROZEN, size=10)
    width = (19 - 1.5 * (len(branches) - 1)) / len(branches)
    for place, branch in enumerate(branches):
        box(
            axes,
            x + 1.5 + place * (width + 1.5),
            y + 1.3,
            width,
            4.2,
            f"$A_{{{branch}}}$",
            COLOURS[branch],
            "white",
            10,
        )
    arrow(axes, (x + 11, y - 2.6), (x + 11, y), COLOURS[branches[0]])
    axes.text(x + 11, y - 4.6, below, ha="center", fontsize=10)


def gradient_paths() -> Figure:
    """How far back a gradient has to go: all through, to the adapters in every layer, or to the head alone."""
    figure, axes = canvas(90, 38)
    ways = (("full fine-tuning", 26), ("UniAdapter", 14), ("linear probe", 2))
    for name, y in ways:
        colour = COLOURS[name]
        axes.text(1, y + 5, name, va="center", fontsize=10, fontweight="bold")
        for x, part in ((26, "layer 1"), (42, "layer 2"), (58, "head")):
            trains = name == "full fine-tuning" or (name == "linear probe" and part == "head")
            box(axes, x, y + 2.5, 11, 5, part, colour if trains else FROZEN, "white" if trains else "black")
            if name == "UniAdapter" and part != "head":
                box(axes, x + 1, y + 8, 9, 2.2, "adapter", colour, "white", 7)
        axes.text(75, y + 5, "loss", va="center", fontsize=10)
        for x in (37, 53, 69):
            arrow(axes, (x, y + 5), (x + 5, y + 5))
        end = 58 if name == "linear probe" else 26
        arrow(axes, (75, y + 1), (end + 2, y + 1), colour)
    return figure
