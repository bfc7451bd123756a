"""Diagrams: that areas are to scale and colours mean what they mean everywhere. How they look is checked by looking."""

import matplotlib.colors as mcolors
import pytest
from matplotlib.patches import Polygon, Rectangle

from uniadapter_edu import diagrams, viz


def words(figure):
    return {text.get_text() for text in figure.axes[0].texts}


def test_areas_are_numbers_of_weights():
    matrices = [patch for patch in diagrams.sizes(192, 8).axes[0].patches if type(patch) is Rectangle]
    full, down, up = (patch.get_width() * patch.get_height() for patch in matrices)
    assert full / down == pytest.approx(192 * 192 / (192 * 8)) and down == pytest.approx(up)


def test_a_bottleneck_narrows_and_widens_in_the_colour_of_its_branch():
    figure = diagrams.bottleneck("text")
    maps = [patch for patch in figure.axes[0].patches if type(patch) is Polygon]
    assert [mcolors.to_hex(patch.get_facecolor()) for patch in maps] == [diagrams.SHARED, viz.COLOURS["text"]]
    assert "$W_{text}$" in words(figure) and "$W_{down}$" in words(figure)


def test_places_name_what_each_adapter_reads():
    assert {"$A_{vision}(u)$", "$A_{text}(a)$", "$u$", "$a$", "LN 2"} <= words(diagrams.places())
    assert {"$A(u)$", "$A(m)$"} <= words(diagrams.parallel_or_sequential())
