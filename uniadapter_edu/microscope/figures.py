"""The microscope's figures: each takes numbers of this package and returns a `matplotlib.figure.Figure`, with no widget
in sight.

They stand on axes that are placed by hand: a layout that is solved anew each time would take longer than all the rest,
and a slider's picture has to follow the slider.
"""

from collections.abc import Mapping, Sequence
from textwrap import fill, shorten

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from uniadapter_edu.microscope.activations import PLACES, Recording, exciting_patches, exciting_words, sparsity
from uniadapter_edu.microscope.costs import Cost
from uniadapter_edu.microscope.frames import FrameReport
from uniadapter_edu.microscope.gallery import Answer, TwoModels
from uniadapter_edu.microscope.similarity import Agreement
from uniadapter_edu.viz import COLOURS

WIDTH = 8.8  # inches, 880 pixels on the page: beside a laptop's file browser
TILE, GAP = 96, 8  # pixels of a picture in a row, and between two
GREY = "#555555"
# What is added in the multimodal pass, part by part; the first two by the text up-projection.
PARTS = {"query residual": "#b9640d", "text part": "#f2b27a", "cross part": COLOURS["cross"]}
PLACE_COLOURS = {name: COLOURS[name] for name in ("vision", "text", "cross")} | {"query residual": "#b9640d"}


def _figure(height: float, width: float = WIDTH) -> Figure:
    return Figure(figsize=(width, height), dpi=100)


def _bare(axes):
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    return axes


def _tidy(axes, **settings):
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.set(**settings)
    axes.xaxis.label.set_size(8.5)
    axes.yaxis.label.set_size(8.5)
    axes.title.set(size=9.5)
    return axes


def _tiles(axes, pictures: Sequence[Image.Image]) -> list[float]:
    """Pictures in a row, each 1 wide; returns the left edge of each. They are one image, which is far faster than
    many."""
    strip = Image.new("RGB", (len(pictures) * (TILE + GAP) - GAP, TILE), "white")
    for i, picture in enumerate(pictures):
        strip.paste(picture.resize((TILE, TILE)), (i * (TILE + GAP), 0))
    width = strip.width / TILE
    axes.imshow(np.asarray(strip), extent=(0, width, 1, 0), interpolation="nearest")
    axes.set(xlim=(-0.03, width + 0.03), ylim=(1.03, -0.03), aspect="equal")
    return [i * (TILE + GAP) / TILE for i in range(len(pictures))]


def _frame(axes, left: float, colour: str, width: float = 3.0, style: str = "-"):
    axes.add_patch(
        Rectangle((left, 0), 1, 1, fill=False, edgecolor=colour, linewidth=width, linestyle=style, clip_on=False)
    )


def _fading(colour: str, strength: float = 0.95) -> LinearSegmentedColormap:
    """From invisible to `colour`, to be laid over a picture; strength: how opaque the largest number is."""
    return LinearSegmentedColormap.from_list("fading", [to_rgba(colour, 0), to_rgba(colour, strength)])


# ------------------------------------------------------------------------------------------------------ activation map


def activation_map(recording: Recording, example: int, picture, layer: int, branch: str = "all") -> Figure:
    """What the adapters of one layer add to each patch of a picture and to each token of its sentence, |A(h)| / |h|.

    From the left: the picture alone, the sentence alone, and the sentence that looks at the picture, there in its three
    parts. One scale for all, and for every layer of the example. branch: "all", or "vision", "text" or "cross" to see
    one.
    """
    figure, tokens = _figure(3.6), recording.tokens[example]
    limit = _largest_share(recording, example)
    chosen = {name: 1.0 if branch in ("all", name) else 0.1 for name in ("vision", "text", "cross")}

    axes = _bare(figure.add_axes((0.01, 0.17, 0.28, 0.68)))
    axes.imshow(np.asarray(picture), extent=(0, 1, 1, 0))
    if reading := recording.readings.get(("vision", layer)):
        shares = reading.share()[example].cpu().numpy()
        side = round((len(shares) - 1) ** 0.5)
        # paled, so that what is laid over it is not taken for its own colours
        axes.add_patch(Rectangle((0, 0), 1, 1, facecolor="white", alpha=0.6 * chosen["vision"], edgecolor="none"))
        style = {"cmap": _fading(COLOURS["vision"], 0.9 * chosen["vision"]), "vmin": 0, "vmax": limit}
        grid = shares[1:].reshape(side, side)
        patches = axes.imshow(grid, extent=(0, 1, 1, 0), interpolation="nearest", **style)
        bar = figure.colorbar(patches, cax=figure.add_axes((0.03, 0.11, 0.24, 0.025)), orientation="horizontal")
        bar.ax.tick_params(labelsize=7)
        axes.set_title(f"the picture alone, [CLS] {shares[0]:.2f}", fontsize=9.5)
    for left, place, title in ((0.385, "text", "the sentence alone"), (0.725, "cross", "the sentence, looking")):
        axes = figure.add_axes((left, 0.17, 0.255, 0.68))
        parts = _token_parts(recording, example, layer, place)
        if not parts:
            _bare(axes).text(0.5, 0.5, f"no {place} branch\nin layer {layer}", ha="center", va="center", color=GREY)
            axes.set_title(title, fontsize=9.5)
            continue
        thickness = 0.8 / len(parts)
        for k, (name, values) in enumerate(parts.items()):
            colour = PARTS.get(name, COLOURS["text"])
            heights = np.arange(len(tokens)) + (k - (len(parts) - 1) / 2) * thickness
            axes.barh(heights, values[: len(tokens)], thickness, color=colour, alpha=chosen[place], label=name)
        _tidy(axes, xlim=(0, limit), ylim=(len(tokens) - 0.5, -0.5), title=title)
        axes.set_yticks(range(len(tokens)), tokens, fontsize=8)
        if len(parts) > 1:
            style = {"fontsize": 8, "frameon": False, "ncols": 3, "handlelength": 1, "columnspacing": 1}
            figure.legend(*axes.get_legend_handles_labels(), loc="lower right", **style)
    figure.text(0.5, 0.945, f"layer {layer}: what is added, |A(h)| / |h|", ha="center", fontsize=10.5)
    figure.text(0.33, 0.025, "one scale in all three, and in all layers", fontsize=8, color=GREY)
    return figure


def _token_parts(recording: Recording, example: int, layer: int, place: str) -> dict[str, np.ndarray]:
    """name -> shares of the tokens, for the sentence alone or for the parts of the multimodal pass."""
    places = ("text",) if place == "text" else ("query residual", "cross")
    readings = {name: recording.readings[name, layer] for name in places if (name, layer) in recording.readings}
    return {part: reading.share(part)[example].cpu().numpy() for reading in readings.values() for part in reading.parts}


def _largest_share(recording: Recording, example: int) -> float:
    return max(
        reading.share(part)[example].max().item() for reading in recording.readings.values() for part in reading.parts
    )


def share_profile(recording: Recording, example: int | None = None, layer: int | None = None) -> Figure:
    """The mean share of each branch over the layers: of one example's patches or tokens, or of all examples'."""
    figure = _figure(2.6)
    axes = _tidy(figure.add_axes((0.08, 0.2, 0.6, 0.72)), xlabel="layer", ylabel="mean |A(h)| / |h|")
    for place in PLACES:
        layers, means = recording.layers(place), []
        for index in layers:
            shares = recording.readings[place, index].share()
            if example is not None:
                length = shares.shape[1] if place == "vision" else len(recording.tokens[example])
                means.append(shares[example, :length].mean().item())
            else:
                means.append(recording.valid(place, index, shares).mean().item())
        style = "--" if place == "query residual" else "-"
        axes.plot(layers, means, style, marker="o", color=PLACE_COLOURS[place], label=place)
    _mark_layer(axes, recording, layer)
    axes.set_ylim(0)
    axes.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


def _mark_layer(axes, recording: Recording, layer: int | None):
    axes.set_xticks(sorted({index for _, index in recording.readings}))
    if layer is not None:
        axes.axvline(layer, color="#dddddd", linewidth=9, zorder=0)


# ------------------------------------------------------------------------------------------------------ bottleneck
# units


def unit_map(recording: Recording, example: int, layer: int, unit: int) -> Figure:
    """Which of a layer's r units fire for each patch of a picture and for each token of its sentence, and how much."""
    figure = _figure(3.9)
    r = next(reading.z.shape[-1] for reading in recording.readings.values())
    found = {name: recording.readings.get((name, layer)) for name in ("vision", "text")}
    limit = max(reading.z[example].max().item() for reading in found.values() if reading) or 1.0
    for place, (left, width) in {"vision": (0.06, 0.55), "text": (0.68, 0.31)}.items():
        axes = figure.add_axes((left, 0.2, width, 0.68))
        if found[place] is None:
            _bare(axes).text(0.5, 0.5, f"no {place} branch in layer {layer}", ha="center", va="center", color=GREY)
            continue
        tokens = recording.tokens[example] if place == "text" else None
        z = found[place].z[example].cpu().numpy()[: len(tokens) if tokens else None]
        axes.imshow(z.T, cmap=_fading(COLOURS[place]), vmin=0, vmax=limit, aspect="auto", interpolation="nearest")
        axes.add_patch(Rectangle((-0.5, unit - 0.5), len(z), 1, fill=False, edgecolor="black", linewidth=1.5))
        _tidy(axes, ylabel="unit", title=f"{place}: {100 * (z > 0).mean():.0f} % fire", ylim=(r - 0.5, -0.5))
        if tokens:
            axes.set_xticks(range(len(tokens)), tokens, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        else:
            axes.set_xticks([0, 1, len(z) - 1], ["[CLS]", " patch 1", str(len(z) - 1)])
            axes.get_xticklabels()[1].set_ha("left")
    return figure


def unit_favourites(recording: Recording, pictures: Sequence, layer: int, unit: int) -> Figure:
    """What excites a unit most over all that was recorded: patches of pictures, framed, and words."""
    figure = _figure(2.2)
    figure.text(0.01, 0.9, f"layer {layer}, unit {unit}: what excites it most", fontsize=10)
    for place, message in (("vision", (0.3, 0.45)), ("text", (0.87, 0.45))):
        if (place, layer) not in recording.readings:
            figure.text(*message, f"no {place} branch here", ha="center", color=GREY, fontsize=9)
    if ("vision", layer) in recording.readings:
        side = round((recording.readings["vision", layer].z.shape[1] - 1) ** 0.5)
        found = exciting_patches(recording, layer, unit)
        axes = _bare(figure.add_axes((0.01, 0.08, 0.68, 0.72)))
        for left, (_, patch, z) in zip(_tiles(axes, [pictures[i] for i, _, _ in found]), found):
            row, column = divmod(patch, side)
            corner = left + column / side, row / side
            axes.add_patch(
                Rectangle(corner, 1 / side, 1 / side, fill=False, edgecolor=COLOURS["vision"], linewidth=2.5)
            )
            axes.text(left + 0.5, 1.14, f"{z:.2f}", ha="center", fontsize=8, color=GREY)
    if ("text", layer) in recording.readings:
        words = [(word, z) for word, z in exciting_words(recording, layer, unit) if z > 0]
        axes = _tidy(figure.add_axes((0.82, 0.14, 0.17, 0.72)))
        axes.barh([word for word, _ in words], [z for _, z in words], color=COLOURS["text"])
        axes.invert_yaxis()
        if not words:
            _bare(axes).text(0.5, 0.5, "silent for words", ha="center", va="center", color=GREY, fontsize=9)
    return figure


def sparsity_chart(recording: Recording) -> Figure:
    """The part of the units that fire for a token, over the layers, for each place."""
    figure = _figure(2.5)
    axes = _tidy(figure.add_axes((0.08, 0.2, 0.6, 0.72)), xlabel="layer", ylabel="units that fire, %")
    for place, shares in sparsity(recording).items():
        style = "--" if place == "query residual" else "-"
        colour = PLACE_COLOURS[place]
        axes.plot(recording.layers(place), [100 * s for s in shares], style, marker="o", color=colour, label=place)
    axes.set_ylim(0, 100)
    _mark_layer(axes, recording, None)
    axes.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1.02, 0.5))
    return figure


# ---------------------------------------------------------------------------------------------------------- shared or
# not

SHARING_COLOURS = {"shared": COLOURS["UniAdapter"], "unshared": COLOURS["unshared adapters"]}


def agreement_chart(
    agreements: Mapping[tuple[str, str], Mapping[int, Agreement]],
    chosen: tuple[str, str] | None = None,
    measure: str = "cosine",
) -> Figure:
    """How well the units tell a picture's own caption from another's, layer by layer.

    agreements: (sharing, state) -> layer -> `Agreement`, such as ("shared", "trained"). chosen: the one to stand out.
    measure: "cosine" shows how often the own caption's cosine is the larger one; "CKA" that of pairs, and dotted of
    mismatched ones.
    """
    figure = _figure(2.9)
    axes = figure.add_axes((0.08, 0.18, 0.55, 0.72))
    for (sharing, state), layers in agreements.items():
        line = {"color": SHARING_COLOURS[sharing], "marker": "o" if state == "trained" else "s", "markersize": 6}
        line |= {
            "linestyle": "-" if state == "trained" else "--",
            "markerfacecolor": None if state == "trained" else "w",
        }
        line |= {"alpha": 1.0 if chosen in (None, (sharing, state)) else 0.22}
        label = f"{sharing}, {state}"
        if measure == "CKA":
            axes.plot(list(layers), [a.cka for a in layers.values()], label=label, **line)
            moved = line | {"linestyle": ":", "marker": ""}
            axes.plot(list(layers), [a.cka_mismatched for a in layers.values()], **moved)
        else:
            axes.plot(list(layers), [100 * a.auc for a in layers.values()], label=label, **line)
    if measure == "CKA":
        _tidy(axes, xlabel="layer", ylabel="linear CKA", ylim=(0, 0.5))
        axes.text(
            1.03, 0.06, "dotted: captions moved\non by one picture", transform=axes.transAxes, fontsize=8, color=GREY
        )
    else:
        axes.axhline(50, color=COLOURS["frozen"], linewidth=1)
        axes.text(0.01, 51, "chance", transform=axes.get_yaxis_transform(), fontsize=8, color=GREY)
        _tidy(axes, xlabel="layer", ylabel="own caption nearer, %", ylim=(0, 100))
    axes.set_xticks(sorted({layer for layers in agreements.values() for layer in layers}))
    axes.legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    return figure


def pairs_histogram(agreement: Agreement, title: str) -> Figure:
    """The cosines behind one point of `agreement_chart`: of pictures with their own captions, and with all others."""
    figure = _figure(2.4)
    axes = _tidy(figure.add_axes((0.08, 0.2, 0.55, 0.66)), xlabel="cosine of the units", ylabel="density", title=title)
    bins = np.linspace(-1, 1, 41)
    for name, values, colour in (
        ("with all others", agreement.mismatched, COLOURS["frozen"]),
        ("with its own caption", agreement.matched, COLOURS["right"]),
    ):
        axes.hist(values.numpy(), bins, density=True, color=colour, alpha=0.6, label=name)
        axes.axvline(values.mean().item(), color=colour, linewidth=2)
    axes.set_yticks([])
    axes.legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.02, 1.0))
    words = f"own caption nearer\nin {100 * agreement.auc:.0f} % of comparisons"
    axes.text(1.04, 0.3, words, transform=axes.transAxes, fontsize=9)
    return figure


# ------------------------------------------------------------------------------------------------------------- the
# console


def ranking(models: TwoModels, answers: Mapping[str, Answer], right: int, query: str) -> Figure:
    """What each model finds for one query, best first, a row a model; the right picture is framed in green."""
    figure = _figure(1.66 * len(answers) + 0.4)
    figure.text(0.01, 1 - 0.2 / figure.get_figheight(), fill(f"“{query}”", 110), fontsize=10, va="center")
    height = 1 / len(answers)
    for row, (name, answer) in enumerate(answers.items()):
        axes = _bare(figure.add_axes((0.13, (len(answers) - 1 - row) * height * 0.9 + 0.02, 0.86, 0.8 * height)))
        for left, index, score in zip(
            _tiles(axes, [models.images[i] for i in answer.found]), answer.found, answer.scores
        ):
            is_right = index == right
            _frame(axes, left, COLOURS["right" if is_right else "wrong"], 3.5 if is_right else 0.8)
            axes.text(left + 0.5, 1.13, f"{score:.2f}", ha="center", fontsize=8, color=GREY)
        axes.text(-0.12, 0.5, name, ha="right", va="center", fontsize=9.5, fontweight="bold", clip_on=False)
    return figure


def recall_bars(recalls: Mapping[str, float]) -> Figure:
    """R@1 of all captions of the gallery as queries, for each model, from 0 to 1."""
    figure = _figure(1.8, 0.42 * WIDTH)
    percents = {name: 100 * recall for name, recall in recalls.items()}
    _score_bars(figure.add_axes((0.24, 0.16, 0.7, 0.62)), percents, "{:.0f}", 100)
    figure.text(0.03, 0.88, "gallery: right picture first, contrast alone, %", fontsize=9.5)
    return figure


def right_scores(answers: Mapping[str, Answer]) -> Figure:
    """How each model scores the right picture: its cosine with the query, and the probability that matching gives
    it."""
    figure = _figure(1.8, 0.56 * WIDTH)
    panels = (
        ("cosine of the right picture", {name: a.cosine for name, a in answers.items()}, "{:.2f}", 1),
        ("matching says yes to it, %", {name: 100 * a.probability for name, a in answers.items()}, "{:.0f}", 100),
    )
    for column, (title, values, form, largest) in enumerate(panels):
        axes = figure.add_axes((0.17 + 0.43 * column, 0.16, 0.37, 0.62))
        _score_bars(axes, values, form, largest)
        axes.set_title(title, fontsize=9.5)
        if column:
            axes.set_yticks([])
    return figure


def _score_bars(axes, values: Mapping[str, float], form: str, largest: float):
    _tidy(axes, xlim=(0, 1.18 * largest))
    colours = [COLOURS["frozen" if name == "frozen" else "UniAdapter"] for name in values]
    shown = axes.barh(list(values), [max(v, 0) for v in values.values()], color=colours)
    axes.bar_label(shown, [form.format(v) for v in values.values()], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.set_xticks([0, largest / 2, largest])


# ---------------------------------------------------------------------------------------------------------- frame
# explorer


def clip_frames(frames: Sequence, report: FrameReport, distractors: Sequence[int], sentence: str) -> Figure:
    """A clip's frames, and under each its weight: the cosine of sentence and frame."""
    figure = _figure(2.75)
    figure.text(0.01, 0.95, fill(f"“{sentence}”", 110), fontsize=10, va="center")
    axes = _bare(figure.add_axes((0.07, 0.36, 0.92, 0.5)))
    lefts = _tiles(axes, frames)
    for place, left in enumerate(lefts):
        if place in distractors:
            axes.add_patch(Rectangle((left, 0), 1, 1, facecolor="white", alpha=0.45, edgecolor="none"))
            _frame(axes, left, COLOURS["frozen"], 2, "--")
            axes.text(left + 0.5, -0.06, "distractor", ha="center", fontsize=7.5, color=GREY)
    bars = figure.add_axes((0.07, 0.06, 0.92, 0.24))
    _tidy(bars, ylabel="weight w", ylim=(-0.6, 1.15), xlim=axes.get_xlim())
    shown = bars.bar([left + 0.5 for left in lefts], report.w.tolist(), 0.5, color=_frame_colours(lefts, distractors))
    bars.bar_label(shown, [f"{w:.2f}" for w in report.w.tolist()], fontsize=8, padding=1)
    bars.axhline(0, color="black", linewidth=0.6)
    bars.set_xticks([])
    bars.set_yticks([])
    # as wide as the pictures, whose panel keeps them square
    axes.apply_aspect()
    place = axes.get_position()
    bars.set_position((place.x0, 0.06, place.width, 0.24))
    return figure


def frame_effects(report: FrameReport, distractors: Sequence[int], temperature: float) -> Figure:
    """What the weights do at a temperature: to the keys, to the attention that each frame gets, and to the answer."""
    figure, places = _figure(2.4), range(len(report.w))
    colours = _frame_colours(places, distractors)
    axes = _tidy(
        figure.add_axes((0.06, 0.2, 0.24, 0.62)), xlabel="frame", title=f"keys times, at temperature {temperature:g}"
    )
    axes.bar(places, report.multipliers.tolist(), color=colours)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylim(0, max(1.3, 1.1 * report.multipliers.max().item()))
    axes = _tidy(figure.add_axes((0.37, 0.2, 0.3, 0.62)), xlabel="frame", title="share of the sentence's attention, %")
    for shift, look, alpha in ((-0.2, report.plain, 0.4), (0.2, report.aware, 1.0)):
        heights = (100 * look.attention.mean(0)).tolist()
        axes.bar([p + shift for p in places], heights, 0.38, color=colours, alpha=alpha)
    axes.set_ylim(0, 80)
    axes.text(
        0.98,
        0.99,
        "pale: all frames alike\nfull: frame-aware",
        fontsize=8,
        ha="right",
        va="top",
        transform=axes.transAxes,
    )
    both = {"all frames alike": report.plain, "frame-aware": report.aware}
    axes = _tidy(figure.add_axes((0.83, 0.3, 0.16, 0.45)), xlim=(0, 125), xticks=(0, 50, 100))
    axes.set_title("matching says yes, %", fontsize=9.5, loc="right")
    shown = axes.barh(list(both), [100 * look.probability for look in both.values()], color=COLOURS["cross"])
    shown.patches[0].set_alpha(0.4)
    axes.bar_label(shown, [f"{100 * look.probability:.0f}" for look in both.values()], padding=3, fontsize=9)
    axes.invert_yaxis()
    for axes in figure.axes[:2]:
        axes.set_xticks(places, [str(p + 1) for p in places])
    return figure


def _frame_colours(places: Sequence, distractors: Sequence[int]) -> list[str]:
    return [COLOURS["frozen" if i in distractors else "vision"] for i in range(len(places))]


# -------------------------------------------------------------------------------------------------------------- the
# ledger


def cost_bars(found: Sequence[Cost], backbone: str) -> Figure:
    """Four measures of what each method costs, each with bars of its own scale."""
    figure, full = _figure(2.3), found[-1]
    panels = (
        ("trained parameters", [c.trainable for c in found], "{:,.0f}", 1),
        ("kept on disk, MB", [c.disk_bytes for c in found], "{:,.2f}", 1e6),
        ("optimizer's memory, MB", [c.adam_bytes for c in found], "{:,.2f}", 1e6),
        ("multiply-adds, millions", [c.multiply_adds for c in found], "{:,.0f}", 1e6),
    )
    names = [f"LoRA, rank {c.rank}" if c.rank else c.method for c in found]
    for column, (title, values, form, unit) in enumerate(panels):
        axes = _tidy(figure.add_axes((0.135 + 0.22 * column, 0.14, 0.185, 0.6)), title=title)
        shown = axes.barh(names, values, color=[COLOURS[c.method] for c in found])
        for patch, value in zip(shown.patches, values):
            inside = value > 0.55 * max(values)
            place = (
                {"x": 0.96 * value, "ha": "right", "color": "white"} if inside else {"x": value + 0.03 * max(values)}
            )
            axes.text(y=patch.get_y() + 0.4, s=form.format(value / unit), va="center", fontsize=8.5, **place)
        axes.set_xlim(0, 1.02 * max(values))
        axes.set_xticks([])
        axes.invert_yaxis()
        if column:
            axes.set_yticks([])
    percent = 100 * found[0].trainable / full.trainable
    words = f"{backbone}: {full.trainable:,} parameters; UniAdapter trains {percent:.2f} % of that, its head copies included"
    figure.text(0.01, 0.91, words, fontsize=10)
    return figure


# -------------------------------------------------------------------------------------------------------- before and
# after


def caption_columns(models: TwoModels, picture: int, found: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """A picture, and the captions that each model finds closest to it; those that are its own are green."""
    figure = _figure(2.1)
    axes = _bare(figure.add_axes((0.01, 0.08, 0.18, 0.78)))
    _tiles(axes, [models.images[picture]])
    for column, (name, captions) in enumerate(found.items()):
        x = 0.21 + 0.4 * column
        figure.text(x, 0.9, f"{name}: closest captions", fontsize=9.5, fontweight="bold", va="center")
        for row, (text, cosine) in enumerate(captions):
            own = models.image_of_text[text].item() == picture
            ink = {"color": COLOURS["right"] if own else "black", "fontweight": "bold" if own else "normal"}
            words = shorten(models.texts[text], 38 if own else 44, placeholder=" …")  # bold letters are wider
            figure.text(x, 0.74 - 0.145 * row, f"{cosine:.2f}  {words}", fontsize=8.5, va="center", **ink)
    return figure
