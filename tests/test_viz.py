"""Figures: that they show the data they were given. How they look is checked by looking."""

import matplotlib.colors as mcolors
import numpy as np
import pytest
from matplotlib.figure import Figure

from uniadapter_edu import viz
from uniadapter_edu.worlds import emoji


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
