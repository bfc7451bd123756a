"""Figures. Every function takes data and returns a `matplotlib.figure.Figure`; nothing here shows, saves or wraps one.

Figures are built without pyplot, so that they are freed when you drop them and work in threads, widgets and tests alike.
In a notebook, a `Figure` as a cell's last line is displayed.
"""

from collections.abc import Mapping, Sequence
from textwrap import fill

from datasets import Dataset
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

# The course's colours: one per branch and per method, the same in every figure. They differ in lightness, too.
COLOURS = {
    "vision": "#3b6fb6",
    "text": "#e08a2e",
    "cross": "#4a9c5d",
    "frozen": "#9a9a9a",
    "linear probe": "#b58fc9",
    "LoRA": "#e08a2e",
    "UniAdapter": "#3b6fb6",
    "full fine-tuning": "#333333",
    "right": "#2e9e4f",
    "wrong": "#c9c9c9",
}


def _grid(rows: int, columns: int, width: float, height: float) -> tuple[Figure, list]:
    """A figure of `rows` x `columns` empty panels, each `width` x `height` inches."""
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained", dpi=100)
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[:].set_visible(False)
    return figure, panels


def contact_sheet(
    dataset: Dataset, n: int = 12, columns: int = 6, caption: int | None = 0, title: str | None = None
) -> Figure:
    """The first `n` pictures of any data set with the columns `image` and `captions`.

    caption  which caption to print beneath each picture; None prints none
    """
    n = min(n, len(dataset))
    rows = -(-n // columns)
    figure, panels = _grid(rows, min(columns, n), 1.5, 1.95 if caption is not None else 1.5)
    for panel, example in zip(panels.flat, dataset.select(range(n))):
        panel.imshow(example["image"], interpolation="nearest")
        if caption is not None:
            words = example["captions"][caption % len(example["captions"])]
            panel.set_xlabel(fill(words, 22), fontsize=7)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def before_after(
    dataset: Dataset,
    queries: Sequence[str],
    before: Sequence[Sequence[int]],
    after: Sequence[Sequence[int]],
    right: Sequence[int],
    labels: tuple[str, str] = ("frozen", "adapted"),
) -> Figure:
    """The same typed queries answered by two models: a row a query, the top pictures of each model side by side.

    before, after  for each query the indices of the top pictures, best first, by the first and by the second model
    right          for each query the index of its picture, framed in green wherever it is found
    """
    k = len(before[0])
    figure, panels = _grid(len(queries), 2 * k + 1, 0.95, 1.2)
    for row, query in enumerate(queries):
        panels[row, k].set_visible(False)
        for found, start in ((before[row], 0), (after[row], k + 1)):
            for place, index in enumerate(found):
                panel = panels[row, start + place]
                panel.imshow(dataset[int(index)]["image"], interpolation="nearest")
                hit = index == right[row]
                panel.spines[:].set(
                    visible=True, color=COLOURS["right" if hit else "wrong"], linewidth=3.5 if hit else 0.6
                )
        # Out of the layout: a long query would push the first column away from the second.
        panels[row, 0].text(0, 1.06, f"“{query}”", fontsize=8.5, transform=panels[row, 0].transAxes, in_layout=False)
    for label, start in zip(labels, (0, k + 1)):
        panels[0, start].text(
            0,
            1.32,
            f"{label}, best first →",
            fontsize=9,
            fontweight="bold",
            transform=panels[0, start].transAxes,
            in_layout=False,
        )
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.3 / figure.get_figheight()))
    return figure


def learning_curves(histories: Mapping[str, Sequence[Mapping]], key: str = "loss", smooth: int = 9) -> Figure:
    """`key` of each training step, one line a method: the running mean over `smooth` steps, above the raw values.

    histories  name -> rows as `training.History.rows` holds them (each with "step" and `key`)
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained", dpi=100)
    axes = figure.subplots()
    for name, rows in histories.items():
        steps, values = zip(*[(row["step"], row[key]) for row in rows if row.get(key) is not None])
        means = [sum(values[max(0, i - smooth + 1) : i + 1]) / min(smooth, i + 1) for i in range(len(values))]
        axes.plot(steps, values, color=COLOURS.get(name), alpha=0.15, linewidth=1)
        axes.plot(steps, means, color=COLOURS.get(name), linewidth=2, label=name)
    axes.set(xlabel="training step", ylabel=key)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def methods_chart(rows: Sequence[Mapping], score: str = "r1") -> Figure:
    """What each method reaches against what it trains: `score` over trainable parameters in percent of the backbone."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained", dpi=100)
    axes = figure.subplots()
    for row in rows:
        axes.scatter(row["percent"], 100 * row[score], s=90, color=COLOURS.get(row["method"]), zorder=3)
        axes.annotate(
            f" {row['method']}  {100 * row[score]:.0f}", (row["percent"], 100 * row[score]), fontsize=9, va="bottom"
        )
    axes.set_xscale("symlog", linthresh=1)
    axes.set(
        xlabel="trainable parameters, % of the backbone", ylabel="right picture first, % of queries", xlim=(-0.1, 400)
    )
    axes.set_ylim(0, 100)
    axes.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure


def method_diagram() -> Figure:
    """UniAdapter in one picture: layer i of the three frozen towers, and the one bottleneck that serves them all."""
    figure = Figure(figsize=(9.2, 4.6), layout="constrained", dpi=110)
    axes = figure.subplots()
    axes.set(xlim=(0, 92), ylim=(0, 46))
    axes.axis("off")

    def box(x, y, width, height, text, face, ink="black", size=8.5):
        style = "round,pad=0.02,rounding_size=1"
        axes.add_patch(
            FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=face, edgecolor="none", zorder=2)
        )
        axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=size, color=ink, zorder=3)

    def arrow(start, end, colour="#555555", bend=0.0):
        curve = {
            "arrowstyle": "-|>",
            "color": colour,
            "linewidth": 1.4,
            "connectionstyle": f"arc3,rad={bend}",
            "shrinkA": 0,
            "shrinkB": 0,
        }
        axes.annotate("", end, start, arrowprops=curve, zorder=4)

    grey, pale = "#d9d9d9", "#f1f1f1"
    towers = (
        ("vision", 2, "vision block $i$", ("attention", "MLP")),
        ("text", 33, "text layer $i$", ("self-attention", "feed-forward")),
        ("cross", 64, "multimodal layer $i$", ("self- and cross-attention", "feed-forward")),
    )
    for branch, x, title, (first, second) in towers:
        box(x, 22, 26, 22, "", pale)
        axes.text(x + 13, 42, title, ha="center", va="center", fontsize=10, fontweight="bold")
        box(x + 2, 33, 22, 5.5, first, grey)
        box(x + 2, 25, 13, 5.5, second, grey)
        axes.text(x + 20.5, 27.7, "+", ha="center", va="center", fontsize=15, color=COLOURS[branch], fontweight="bold")
        arrow((x + 8.5, 33), (x + 8.5, 30.6))
        arrow((x + 15, 27.7), (x + 18.8, 27.7))
        box(x + 14.5, 14.2, 12, 5, f"$W_{{{branch}}}$", COLOURS[branch], "white", 11)
        arrow((x + 20.5, 19.2), (x + 20.5, 25.8), COLOURS[branch])
        arrow((x + 4.5, 22), (x + 4.5, 9.2), "#999999")  # what enters the bottleneck
        arrow((x + 20.5, 9.2), (x + 20.5, 14.1), COLOURS[branch])
    # the multimodal branch also uses the text up-projection
    arrow((59.6, 16.7), (78.3, 16.7), COLOURS["text"])
    axes.text(69, 17.6, "reused", ha="center", fontsize=7.5, color=COLOURS["text"])
    box(
        2,
        3,
        88,
        6,
        "one bottleneck for all three:   $z(h)=\\mathrm{ReLU}(W_{down}\\,\\mathrm{LN}(h)+b)$",
        "#333333",
        "white",
        11,
    )
    axes.text(
        46,
        0.8,
        "grey: frozen BLIP        coloured and black: all that trains, besides three small heads",
        ha="center",
        fontsize=8.5,
        color="#555555",
    )
    return figure
