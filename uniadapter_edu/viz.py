"""Figures. Every function takes data and returns a `matplotlib.figure.Figure`; only `show` displays one.

Figures are built without pyplot, so that they are freed when you drop them and work in threads, widgets and tests alike.
In a notebook, `show(figure, alt=...)` displays one together with words for those who cannot see it.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from statistics import mean, stdev
from textwrap import fill

import numpy as np
from datasets import Dataset
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

# The course's colours: one per branch and per method, the same in every figure. They differ in lightness, too.
COLOURS = {
    "vision": "#3b6fb6",
    "text": "#e08a2e",
    "cross": "#4a9c5d",
    "frozen": "#9a9a9a",
    "linear probe": "#b58fc9",
    "LoRA": "#e08a2e",
    "UniAdapter": "#3b6fb6",
    "unshared adapters": "#4a9c5d",
    "adapter per modality": "#8c2d5e",
    "full fine-tuning": "#333333",
    "right": "#2e9e4f",
    "wrong": "#c9c9c9",
}
# Of signed numbers, from below zero to above; safe for the colour-blind, and pale where it is near zero.
NUMBERS = LinearSegmentedColormap.from_list("numbers", ["#2a5592", "#9db8dc", "#ffffff", "#f2c596", "#b9640d"])


def show(figure: Figure, alt: str) -> None:
    """Display ``figure`` in a notebook, with ``alt``, a sentence that says what it shows to those who cannot see it.

    The text is the picture's `alt` in the output's metadata, and the output's plain text, which stands in for a picture
    that cannot be shown and which nbval compares. Not every page that shows notebooks passes it on, so let the prose beside
    a figure say what matters, too. Drawn at 1.5 times its size on the page, for sharp screens.
    """
    from IPython.display import display

    png = BytesIO()
    figure.savefig(png, format="png", dpi=150)
    width = round(100 * figure.get_figwidth())
    data = {"image/png": png.getvalue(), "text/plain": alt}
    display(data, raw=True, metadata={"image/png": {"alt": alt, "width": width}})


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
        figure.set_figheight(figure.get_figheight() + 0.25)
    figure.draw_without_rendering()  # a second pass of the layout, when it is drawn, sees captions of three lines whole
    return figure


def said_sheet(
    pictures: Sequence,
    said: Mapping[str, Sequence[str]],
    right: Mapping[str, Sequence[bool]] | None = None,
    columns: int = 2,
) -> Figure:
    """Pictures, and beside each of them what was asked or said about it: a line for each name of `said`.

    said   name -> one text for each picture
    right  for some of these names, which of the texts are right: those are green with a tick, the others have a cross
    """
    rows = -(-len(pictures) // columns)
    figure = Figure(figsize=(9.2, 1.25 * rows), layout="constrained", dpi=100)
    panels = figure.subplots(rows, 2 * columns, squeeze=False, width_ratios=[1, 2.6] * columns)
    for panel in panels.flat:
        panel.set_axis_off()
    for i, picture in enumerate(pictures):
        beside, texts = panels[i // columns, 2 * (i % columns)], panels[i // columns, 2 * (i % columns) + 1]
        beside.imshow(picture, interpolation="nearest")
        for line, (name, own) in enumerate(said.items()):
            verdict = right[name][i] if right and name in right else None
            mark, ink = {None: ("", "black"), True: (" ✓", COLOURS["right"]), False: (" ✗", "#6b6b6b")}[verdict]
            look = {"y": 1 - (line + 0.5) / len(said), "va": "center", "in_layout": False}
            texts.text(0, s=name, fontsize=8, color="#6b6b6b", **look)
            texts.text(0.22, s=fill(own[i], 36) + mark, fontsize=9, color=ink, **look)
    return figure


def clip_sheet(clips: Dataset, n: int = 6, caption: int | None = 0, title: str | None = None) -> Figure:
    """The first `n` clips of any data set with the columns `frames` and `captions`: a row a clip, its caption above it.

    Frames that the column `distractors` counts, where there is one, are pale, framed and labelled.
    caption  which caption to print; None prints none
    """
    examples = list(clips.select(range(min(n, len(clips)))))
    columns = max(len(example["frames"]) for example in examples)
    width = _frame_width(columns)
    figure, panels = _grid(len(examples), columns, width, width if caption is None else width + 0.25)
    for row, example in zip(panels, examples):
        distractors = example.get("distractors") or ()
        for place, (panel, frame) in enumerate(zip(row, example["frames"])):
            _draw_frame(panel, frame, place in distractors)
        if caption is not None:
            words = example["captions"][caption % len(example["captions"])]
            # Out of the layout: a long caption would push the second frame away from the first.
            row[0].text(0, 1.05, words, fontsize=8, transform=row[0].transAxes, in_layout=False)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def weighed_frames(frames: Sequence, numbers: Mapping[str, Sequence[float]], distractors: Sequence[int] = ()) -> Figure:
    """The frames of one clip, and beneath them a row of bars for each kind of number that frames have.

    numbers  name -> one number a frame, such as its weight w; distractors: frames that show something else
    """
    width, bars = _frame_width(len(frames)), 0.95
    figure = Figure(figsize=(width * len(frames), width + bars * len(numbers)), layout="constrained", dpi=100)
    heights = [width] + [bars] * len(numbers)
    panels = figure.subplots(1 + len(numbers), len(frames), squeeze=False, height_ratios=heights)
    for place, frame in enumerate(frames):
        panels[0, place].set(xticks=[], yticks=[])
        panels[0, place].spines[:].set_visible(False)
        _draw_frame(panels[0, place], frame, place in distractors)
    for row, (name, values) in zip(panels[1:], numbers.items()):
        low, high = min(0.0, *values), max(values)
        for place, (panel, value) in enumerate(zip(row, values)):
            panel.bar([0], [value], width=0.5, color=COLOURS["frozen" if place in distractors else "vision"])
            panel.annotate(
                f"{value:.2f}", (0, max(value, 0)), (0, 2), textcoords="offset points", ha="center", fontsize=9
            )
            panel.set(xlim=(-0.6, 0.6), ylim=(low, 1.35 * high), xticks=[], yticks=[])
            panel.axhline(0, color="#555555", linewidth=0.8)
            panel.spines[:].set_visible(False)
        row[0].set_ylabel(name, fontsize=9)
    return figure


def _frame_width(count: int) -> float:
    """Inches of one frame beside others: a page is about nine wide."""
    return min(1.5, 9.2 / count)


def _draw_frame(panel, picture, is_distractor: bool) -> None:
    """One frame of a clip; a distractor is pale, framed and labelled."""
    panel.imshow(picture, interpolation="nearest", alpha=0.45 if is_distractor else 1)
    if is_distractor:
        panel.spines[:].set(visible=True, color=COLOURS["frozen"], linewidth=2, linestyle="--")
        label = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        panel.text(0.5, 0.06, "distractor", fontsize=7, ha="center", transform=panel.transAxes, bbox=label)


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


def examples_curve(
    lines: Mapping[str, Mapping[int, Sequence[float]]], ylabel: str, level: float | None = None
) -> Figure:
    """What training on more and more examples gives: name -> number of examples -> the scores of one or more seeds.

    Large points are means over seeds, small points the runs. ``level``: of the frozen model, without any example.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained", dpi=100)
    axes = figure.subplots()
    for name, scores in lines.items():
        colour = COLOURS.get(name)
        (line,) = axes.plot(list(scores), [mean(own) for own in scores.values()], "o-", color=colour, linewidth=2)
        for size, own in scores.items():
            axes.plot([size] * len(own), own, "o", color=line.get_color(), alpha=0.4, markersize=3.5, markeredgewidth=0)
        last = mean(list(scores.values())[-1])
        end = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(name, (list(scores)[-1], last), color=line.get_color(), fontsize=9, **end)
    sizes = sorted({size for scores in lines.values() for size in scores})
    if level is not None:
        axes.axhline(level, color=COLOURS["frozen"], linestyle="--", linewidth=1.2)
        axes.annotate("frozen", (0.01, level), (0, 3), fontsize=9, color="#777777", **_AT_LEFT)
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.minorticks_off()
    axes.set(xlabel="examples (log scale)", ylabel=ylabel, ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure


def methods_chart(rows: Sequence[Mapping], score: str = "r1") -> Figure:
    """What each method reaches against what it trains: `score` over trainable parameters in percent of the backbone."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained", dpi=100)
    axes = figure.subplots()
    for row in rows:
        point = row["percent"], 100 * row[score]
        # of two methods side by side, the lower one's label goes below
        covered = any(
            0.5 < other["percent"] / point[0] < 2 and 0 < 100 * other[score] - point[1] < 8
            for other in rows
            if point[0]
        )
        place = {"xytext": (6, -5), "va": "top"} if covered else {"xytext": (6, 2), "va": "bottom"}
        axes.scatter(*point, s=90, color=COLOURS.get(row["method"]), zorder=3)
        axes.annotate(f"{row['method']}  {point[1]:.0f}", point, textcoords="offset points", fontsize=9, **place)
    axes.set_xscale("symlog", linthresh=1)
    axes.set(
        xlabel="trainable parameters, % of the backbone", ylabel="right picture first, % of queries", xlim=(-0.1, 1000)
    )
    axes.set_ylim(0, 100)
    axes.set_xticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure


def recovery_curve(rows: Sequence[Mapping], probe: float | None = None, title: str | None = None) -> Figure:
    """The share of full fine-tuning's gain that methods of several sizes recover, a line each, over what they train.

    rows   one a run: "line", "budget" (runs of one line and budget differ in the seed), "percent" of the backbone that
           trains, and "recovered" (1 is all of the gain). Large points are means, bars ± one standard deviation, small
           points beside them the runs. The guides stand at 90 % of the gain and at 5 % of the parameters.
    probe  what the linear probe recovers, to be drawn as a level
    """
    figure = Figure(figsize=(6.4, 4.3), layout="constrained", dpi=110)
    axes = figure.subplots()
    axes.axhline(90, color="#999999", linestyle="--", linewidth=1)
    axes.axvline(5, color="#999999", linestyle="--", linewidth=1)
    axes.annotate("90 % of the gain", (0.01, 90), (0, 3), fontsize=8.5, color="#666666", **_AT_LEFT)
    axes.annotate("5 %", (5, 0.01), (3, 0), fontsize=8.5, color="#666666", **_AT_BOTTOM)
    if probe is not None:
        axes.axhline(100 * probe, color=COLOURS["linear probe"], linewidth=1.5, zorder=1)
        axes.annotate("linear probe", (0.01, 100 * probe), (0, 3), fontsize=9, color="#7d5a94", **_AT_LEFT)
    for number, (line, own) in enumerate(_grouped(rows, "line").items()):
        look = {"color": COLOURS.get(line, f"C{number}"), "zorder": 4 if line == "UniAdapter" else 3}
        cells = [
            ([row["percent"] for row in cell], [100 * row["recovered"] for row in cell])
            for cell in _grouped(own, "budget").values()
        ]
        for percents, shares in cells:
            beside = [1.035 * percent for percent in percents]
            axes.plot(beside, shares, "o", alpha=0.6, markersize=3.5, markeredgewidth=0, **look)
        means = sorted((mean(percents), mean(shares), _spread(shares)) for percents, shares in cells)
        x, y, spread = zip(*means)
        marker = "osD^vP"[number % 6]
        axes.errorbar(x, y, spread, marker=marker, markersize=7, linewidth=2, elinewidth=1.2, label=line, **look)
    _percent_axis(axes, [row["percent"] for row in rows])
    axes.set(xlabel="trainable parameters, % of the backbone (log scale)", ylabel="gain recovered, %", title=title)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0), max(high, 104))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    axes.legend(fontsize=9, loc="lower right", framealpha=1, edgecolor="none")
    return figure


def ablation_chart(
    rows: Sequence[Mapping],
    reference: str | None = None,
    title: str | None = None,
    score: str = "r1",
    found: str = "picture",
) -> Figure:
    """What each choice reaches, from the top in the order of `rows`: large points are means, bars ± one standard
    deviation, small points the runs. On the right, how much of the backbone's size trains.

    rows       one a run: "choice" (runs of one choice differ in the seed), "percent" and `score`, a fraction of 1
    reference  the choice that the others are compared with: a line through its mean, and a band of its deviation
    found      what is searched
    """
    choices = _grouped(rows, "choice")
    figure = Figure(figsize=(6.4, 0.9 + 0.27 * len(choices)), layout="constrained", dpi=110)
    axes = figure.subplots()
    for place, (choice, own) in enumerate(choices.items()):
        values, colour = [100 * row[score] for row in own], COLOURS["full fine-tuning"]
        centre, spread = mean(values), _spread(values)
        if choice == reference:
            colour = COLOURS["UniAdapter"]
            axes.axvline(centre, color=colour, linewidth=1, zorder=1)
            axes.axvspan(centre - spread, centre + spread, color=colour, alpha=0.12, linewidth=0)
        axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.3, markersize=4, markeredgewidth=0)
        axes.errorbar(centre, place, xerr=spread, fmt="o", color=colour, markersize=7, elinewidth=1.5, zorder=3)
        size = "" if own[0].get("percent") is None else f"{own[0]['percent']:.1f} %"
        axes.text(1.02, place, size, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5, color="#555555")
    axes.text(1.02, -0.85, "trained", transform=axes.get_yaxis_transform(), fontsize=8.5, color="#555555")
    axes.set_yticks(range(len(choices)), choices, fontsize=9)
    axes.set_ylim(len(choices) - 0.4, -0.6)
    axes.set(xlabel=f"right {found} first, % of queries")
    axes.set_title(title, loc="left", fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    return figure


def tasks_chart(cells: Sequence[Mapping]) -> Figure:
    """Several tasks, a line each, from the frozen model to full fine-tuning: means, and bars of ± one standard deviation.

    cells  one a task and method: "task", "unit", "method", "score" and "score_std", fractions of 1 or None
    """
    tasks = _grouped([cell for cell in cells if cell["score"] is not None], "task")
    figure = Figure(figsize=(6.4, 1.2 + 0.5 * len(tasks)), layout="constrained", dpi=110)
    axes, marks = figure.subplots(), {}
    for place, own in enumerate(tasks.values()):
        scores = [100 * cell["score"] for cell in own]
        axes.plot([min(scores), max(scores)], [place, place], color="#cccccc", linewidth=2, zorder=1)
        for cell, score in zip(own, scores):
            method, spread = cell["method"], 100 * (cell["score_std"] or 0)
            look = {"color": COLOURS[method], "marker": {"frozen": "|", "UniAdapter": "o"}.get(method, "s")}
            size = 9 if method in ("UniAdapter", "frozen") else 6
            marks[method] = axes.errorbar(score, place, xerr=spread, markersize=size, elinewidth=1.5, zorder=3, **look)
    labels = [f"{task}\n({own[0]['unit']})" for task, own in tasks.items()]
    axes.set_yticks(range(len(tasks)), labels, fontsize=9)
    axes.set_ylim(len(tasks) - 0.5, -0.5)
    axes.set(xlabel="score on test scenes, %", xlim=(-1, 101))
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    figure.legend(marks.values(), marks, loc="outside upper center", ncols=len(marks), fontsize=9, frameon=False)
    return figure


# Labels of guides: x in parts of the panel and y in data, or the other way round, moved by some points.
_AT_LEFT = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
_AT_BOTTOM = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}


def _grouped(rows: Sequence[Mapping], name: str) -> dict[str, list[Mapping]]:
    """The rows by what they have under `name`, in the order in which that first appears."""
    groups: dict[str, list[Mapping]] = {}
    for row in rows:
        groups.setdefault(row[name], []).append(row)
    return groups


def _spread(values: Sequence[float]) -> float:
    """The standard deviation; 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def _percent_axis(axes, percents: Sequence[float]) -> None:
    """A logarithmic x axis with ticks at round percents."""
    axes.set_xscale("log")
    axes.set_xlim(0.85 * min([*percents, 4]), 1.2 * max([*percents, 6]))
    low, high = axes.get_xlim()
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50, 100) if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()


def number_grids(
    grids: Mapping[str, Sequence[Sequence[float]]],
    decimals: int = 1,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    limit: float | None = None,
) -> Figure:
    """Matrices side by side, each number written into its square and coloured: blue below zero, orange above.

    grids    title -> (R, C); their rows are all of one size on the page
    rows, columns  labels of the rows of the first one and of the columns of each
    limit    where colours are full; the largest absolute number of all unless told
    """
    arrays = {title: np.atleast_2d(np.asarray(values, dtype=float)) for title, values in grids.items()}
    limit = limit or max(np.abs(a).max() for a in arrays.values()) or 1.0
    height, widths = max(len(a) for a in arrays.values()), [a.shape[1] for a in arrays.values()]
    square = min(0.62, 7.2 / sum(widths))  # inches; the page is about nine wide
    size = (square * sum(widths) + 0.3 * len(widths) + 0.9 * (rows is not None), 0.45 * height + 0.6)
    figure = Figure(figsize=size, layout="constrained", dpi=100)
    panels = figure.subplots(1, len(arrays), squeeze=False, width_ratios=widths)[0]
    for panel, (title, a) in zip(panels, arrays.items()):
        panel.imshow(a, cmap=NUMBERS, vmin=-limit, vmax=limit, aspect="auto")
        for (i, j), value in np.ndenumerate(a):
            ink = "white" if abs(value) > 0.75 * limit else "black"
            # + 0.0: a zero has no sign
            panel.text(
                j, i, f"{round(value, decimals) + 0.0:.{decimals}f}", ha="center", va="center", fontsize=9, color=ink
            )
        panel.set_title(title, fontsize=10)
        panel.set_xticks(range(a.shape[1]) if columns else [], columns or [], fontsize=8)
        panel.set_yticks(
            range(len(a)) if rows and panel is panels[0] else [], rows if rows and panel is panels[0] else []
        )
        panel.set_xticks(np.arange(a.shape[1] + 1) - 0.5, minor=True)
        panel.set_yticks(np.arange(len(a) + 1) - 0.5, minor=True)
        panel.grid(which="minor", color="#cccccc", linewidth=0.8)
        panel.spines[:].set_color("#cccccc")
        panel.tick_params(which="both", length=0)
    figure.get_layout_engine().set(wspace=0.08)
    return figure


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    xlabel: str,
    ylabel: str,
    colours: Mapping[str, str] | None = None,
    dashed: Sequence[str] = (),
    log: bool = False,
) -> Figure:
    """Lines through points: name -> (x, y), named at their ends, but for names that begin with "_".

    ``log``: both axes are logarithmic. ``dashed``: names of lines that are guides and not measured.
    """
    figure = Figure(figsize=(6.4, 3.6), layout="constrained", dpi=100)
    axes = figure.subplots()
    for name, (x, y) in lines.items():
        colour = (colours or COLOURS).get(name)
        style = (
            {"linestyle": "--", "linewidth": 1.2}
            if name in dashed
            else {"linewidth": 2, "marker": "o", "markersize": 3}
        )
        (line,) = axes.plot(x, y, color=colour, label=name, **style)
        end = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 9}
        if not name.startswith("_"):
            axes.annotate(name, (x[-1], y[-1]), color=line.get_color(), annotation_clip=False, **end)
    taken = sorted({value for x, _ in lines.values() for value in x})
    if log:
        axes.set(xscale="log", yscale="log")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if len(taken) <= 10:  # few enough to name each; a power of ten alone names none of 16, 32, 64
            axes.set_xticks(taken)
            axes.xaxis.set_minor_locator(NullLocator())
    elif all(float(value).is_integer() for value in taken):  # steps and layers: there is none numbered 2.5
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure


def bars(values: Mapping[str, float], xlabel: str, colours: Mapping[str, str] | None = None) -> Figure:
    """Horizontal bars with their numbers, the first on top."""
    figure = Figure(figsize=(6.4, 0.8 + 0.42 * len(values)), layout="constrained", dpi=100)
    axes = figure.subplots()
    names = list(values)
    drawn = axes.barh(names, list(values.values()), color=[(colours or COLOURS).get(n, "#3b6fb6") for n in names])
    axes.bar_label(
        drawn, [f"{value:,.4g}" if value < 1000 else f"{value:,.0f}" for value in values.values()], padding=3
    )
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def grouped_bars(groups: Mapping[str, Mapping[str, float]], xlabel: str, colours: Mapping[str, str]) -> Figure:
    """Horizontal bars in groups, the first group and its first bar on top: group -> name -> number.

    Each bar has its number behind it; with more than one name, a legend says which colour is which.
    """
    names = list(dict.fromkeys(name for own in groups.values() for name in own))
    height = 0.8 / len(names)
    size = (6.4, 0.9 + (0.2 + 0.2 * len(names)) * len(groups))
    figure = Figure(figsize=size, layout="constrained", dpi=100)
    axes = figure.subplots()
    for place, name in enumerate(names):
        own = {row: values[name] for row, values in enumerate(groups.values()) if name in values}
        rows = [row + (place - (len(names) - 1) / 2) * height for row in own]
        drawn = axes.barh(rows, list(own.values()), 0.9 * height, color=colours[name], label=name)
        axes.bar_label(drawn, [f"{value:.0f}" for value in own.values()], padding=3, fontsize=8.5)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.1)
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        axes.legend(frameon=False, fontsize=9)
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
