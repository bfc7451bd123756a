"""Figures: that they show the data they were given. How they look is checked by looking."""

import matplotlib.colors as mcolors
import numpy as np
import pytest
from matplotlib.figure import Figure

from uniadapter_edu import viz
from uniadapter_edu.worlds import clips, emoji


@pytest.fixture(scope="module")
def gallery():
    return emoji.load_split("target", "test", 8)


def visible(figure):
    return [axes for axes in figure.axes if axes.get_images()]


def test_a_contact_sheet_shows_each_picture_with_its_caption(gallery):
    panels = visible(viz.contact_sheet(gallery, n=7, columns=3, caption=1))
    assert len(panels) == 7
    for panel, example in zip(panels, gallery):
        assert np.array_equal(panel.get_images()[0].get_array(), np.asarray(example["image"]))
        assert panel.get_xlabel().replace("\n", " ") == example["captions"][1]


@pytest.mark.parametrize("title", [None, "A title"])
def test_no_line_of_a_caption_is_cut_off_a_contact_sheet(title):
    figure = viz.contact_sheet(emoji.load_split("source", "test", 6), title=title)  # captions of up to three lines
    figure.draw_without_rendering()
    labels = [panel.xaxis.label for panel in visible(figure)]
    assert max(label.get_text().count("\n") for label in labels) == 2
    assert min(label.get_window_extent().y0 for label in labels) >= 0


def test_before_and_after_frames_the_right_picture_where_it_was_found_and_only_there(gallery):
    figure = viz.before_after(gallery, ["a", "b"], [[3, 1], [4, 5]], [[0, 2], [6, 1]], right=[0, 1])
    green = mcolors.to_rgba(viz.COLOURS["right"])
    framed = [axes.spines["left"].get_edgecolor() == green for axes in visible(figure)]
    assert framed == [False, False, True, False, False, False, False, True]  # by row: before, before, after, after


def test_learning_curves_draw_the_values_and_their_running_mean():
    axes = viz.learning_curves({"UniAdapter": [{"step": i, "loss": float(i)} for i in range(5)]}, smooth=2).axes[0]
    raw, mean = (
        line.get_ydata().tolist() if hasattr(line.get_ydata(), "tolist") else list(line.get_ydata())
        for line in axes.lines
    )
    assert raw == [0, 1, 2, 3, 4] and mean == [0, 0.5, 1.5, 2.5, 3.5]


def test_the_chart_places_each_method_by_what_it_trains_and_reaches():
    rows = [{"method": "frozen", "percent": 0.0, "r1": 0.3}, {"method": "UniAdapter", "percent": 3.5, "r1": 0.6}]
    points = [tuple(c.get_offsets()[0]) for c in viz.methods_chart(rows).axes[0].collections]
    assert points == [(0.0, 30.0), (3.5, 60.0)]


def test_figures_leave_no_pyplot_state_behind(gallery):
    import matplotlib.pyplot as plt

    assert isinstance(viz.method_diagram(), Figure) and isinstance(viz.contact_sheet(gallery), Figure)
    assert plt.get_fignums() == []


def test_the_recovery_curve_has_a_line_a_method_through_the_means_of_its_seeds():
    rows = [
        {"line": line, "budget": budget, "percent": budget + 0.1, "recovered": share + spread}
        for line, shares in (("UniAdapter", (0.5, 0.9)), ("LoRA", (0.3, 0.6)))
        for budget, share in zip((5, 2), shares)
        for spread in (-0.1, 0.1)
    ]
    axes = viz.recovery_curve(rows, probe=0.2).axes[0]
    lines = {container.get_label(): container.lines for container in axes.containers}
    assert list(lines) == ["UniAdapter", "LoRA"] and axes.get_xscale() == "log"
    mean, _, (bars,) = lines["LoRA"]
    assert np.allclose(mean.get_xydata(), [(2.1, 60), (5.1, 30)])  # in the order of size
    assert np.allclose(np.diff([segment[:, 1] for segment in bars.get_segments()]), 2 * 10 * 2**0.5)  # ± 14.1
    levels = [line.get_ydata()[0] for line in axes.lines if len(set(line.get_ydata())) == 1]
    assert 20 in levels and 90 in levels


def test_the_ablation_chart_places_choices_from_the_top_beside_the_reference():
    rows = [{"choice": c, "percent": 5, "r1": r} for c, r in (("paper", 0.4), ("paper", 0.5), ("none", 0.3))]
    axes = viz.ablation_chart(rows, reference="paper").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["paper", "none"]
    means = [container.lines[0].get_xydata()[0].tolist() for container in axes.containers]
    assert np.allclose(means, [(45, 0), (30, 1)]) and axes.yaxis_inverted()
    assert any(set(line.get_xdata()) == {45} and len(line.get_xdata()) == 2 for line in axes.lines)


def test_show_displays_the_figure_with_its_alternative_text(monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw, metadata: shown.append((data, metadata)))
    viz.show(viz.bars({"a": 1}, "things"), alt="One bar of length 1.")
    ((data, metadata),) = shown
    assert data["image/png"].startswith(b"\x89PNG") and data["text/plain"] == "One bar of length 1."
    assert metadata == {"image/png": {"alt": "One bar of length 1.", "width": 640}}


def test_number_grids_write_each_number_into_its_square():
    grids = {"a": [[1, -0.04], [0.25, 3]], "b": [[0.5]]}
    panels = viz.number_grids(grids, decimals=1, rows=["x", "y"], columns=None).axes
    assert [[t.get_text() for t in panel.texts] for panel in panels] == [["1.0", "0.0", "0.2", "3.0"], ["0.5"]]
    assert [panel.get_title() for panel in panels] == ["a", "b"]
    assert [t.get_text() for t in panels[0].get_yticklabels()] == ["x", "y"]
    # one colour scale for all
    assert {panel.get_images()[0].get_clim() for panel in panels} == {(-3.0, 3.0)}


def test_curves_are_named_at_their_ends():
    lines = {"up": ([1, 2], [3, 4]), "level": ([1, 2], [1, 1]), "_silent": ([1, 2], [2, 2])}
    axes = viz.curves(lines, "x", "y", dashed=["level"], log=True).axes[0]
    assert [t.get_text() for t in axes.texts] == ["up", "level"] and axes.texts[0].xy == (2, 4)
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--", "-"] and axes.get_yscale() == "log"


def test_curves_name_the_few_widths_on_a_logarithmic_axis_and_no_half_steps_on_a_linear_one():
    axes = viz.curves({"adapters": ([16, 64, 512], [1, 2, 3])}, "width", "y", log=True).axes[0]
    assert axes.get_xticks().tolist() == [16, 64, 512] and not len(axes.get_xticks(minor=True))
    steps = viz.curves({"loss": (range(4), [4, 3, 2, 1])}, "step", "loss").axes[0].get_xticks()
    assert (steps == steps.round()).all()


def test_bars_have_their_numbers_and_begin_on_top():
    axes = viz.bars({"small": 0.5, "large": 12345}, "things").axes[0]
    assert [patch.get_width() for patch in axes.patches] == [0.5, 12345] and axes.yaxis_inverted()
    assert [t.get_text() for t in axes.texts] == ["0.5", "12,345"]


def test_weighed_frames_stand_above_their_numbers_and_distractors_are_grey():
    clip = clips.load_clips("target", "test", 1, frames=4, distractors=1)[0]
    (wrong,) = clip["distractors"]
    panels = viz.weighed_frames(clip["frames"], {"w": [0.5, -0.2, 0.1, 0.4], "m": [1] * 4}, [wrong]).axes
    assert [text.get_text() for panel in panels[4:8] for text in panel.texts] == ["0.50", "-0.20", "0.10", "0.40"]
    assert [panel.patches[0].get_height() for panel in panels[4:8]] == [0.5, -0.2, 0.1, 0.4]
    grey = [mcolors.to_hex(panel.patches[0].get_facecolor()) == viz.COLOURS["frozen"] for panel in panels[4:8]]
    assert grey == [place == wrong for place in range(4)]
    assert [[text.get_text() for text in panel.texts] for panel in panels[:4]][wrong] == ["distractor"]
    assert panels[4].get_ylabel() == "w" and panels[8].get_ylabel() == "m"


def test_the_curve_over_examples_goes_through_the_means_of_its_seeds():
    lines = {"UniAdapter": {50: [30, 34], 200: [50, 52]}, "full fine-tuning": {50: [28], 200: [60]}}
    axes = viz.examples_curve(lines, "score", level=20).axes[0]
    means = [line.get_xydata().tolist() for line in axes.lines if line.get_linestyle() == "-"]
    assert means == [[[50, 32], [200, 51]], [[50, 28], [200, 60]]]
    assert [t.get_text() for t in axes.texts] == ["UniAdapter", "full fine-tuning", "frozen"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["50", "200"] and axes.get_xscale() == "log"


def test_what_is_said_stands_beside_its_picture_and_is_green_where_it_is_right(gallery):
    pictures, texts = list(gallery["image"][:3]), ["one", "two", "three"]
    figure = viz.said_sheet(pictures, {"asked": ["?"] * 3, "says": texts}, {"says": [True, False, True]})
    assert [np.array_equal(p.get_images()[0].get_array(), q) for p, q in zip(visible(figure), pictures)] == [True] * 3
    written = [[text for text in axes.texts if text.get_text() not in ("asked", "says")] for axes in figure.axes]
    said = [[text.get_text() for text in own] for own in written if own]
    assert said == [["?", "one ✓"], ["?", "two ✗"], ["?", "three ✓"]]
    green = [own[1].get_color() == viz.COLOURS["right"] for own in written if own]
    assert green == [True, False, True]


def test_grouped_bars_stand_in_order_and_have_their_numbers():
    groups = {"first": {"UniAdapter": 40.4, "frozen": 0.0}, "second": {"UniAdapter": 9.6}}
    axes = viz.grouped_bars(groups, "%", viz.COLOURS).axes[0]
    bars = {
        c.get_label(): [(round(b.get_y() + b.get_height() / 2, 2), b.get_width()) for b in c] for c in axes.containers
    }
    assert bars == {"UniAdapter": [(-0.2, 40.4), (0.8, 9.6)], "frozen": [(0.2, 0.0)]} and axes.yaxis_inverted()
    assert [text.get_text() for text in axes.texts] == ["40", "10", "0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second"]
    assert axes.get_legend() and not viz.grouped_bars({"a": {"frozen": 1}}, "%", viz.COLOURS).axes[0].get_legend()
