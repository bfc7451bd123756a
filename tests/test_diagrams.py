"""Diagrams: that areas are to scale and colours mean what they mean everywhere. How they look is checked by looking."""

import matplotlib.colors as mcolors
import pytest
from matplotlib.patches import Polygon, Rectangle

from uniadapter_edu import diagrams, viz


def words(figure):
    return {text.get_text() for text in figure.axes[0].texts}


def test_blip_has_three_encoders_and_two_comparisons():
    said = words(diagrams.blip())
    assert {"text encoder", "vision encoder", "multimodal encoder", "same layers"} <= said
    assert sum(word.startswith(("contrastive:", "matching:")) for word in said) == 2


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


def test_an_adapter_stands_beside_each_layer_of_both_encoders():
    written = [text.get_text() for text in diagrams.unimodal(vision=4, text=3).axes[0].texts]
    assert written.count("$A_{vision}$") == 4 and written.count("$A_{text}$") == 3
    assert {"vision block 4", "text layer 3", "$v$", "$t$"} <= set(written) and "text layer 4" not in written


def test_what_is_shared_is_drawn_once_and_black():
    axes = diagrams.sharing().axes[0]
    faces = [mcolors.to_hex(patch.get_facecolor()) for patch in axes.patches if type(patch) is Polygon]
    # none, down, up, all: where a branch shares, its map is the black one, drawn for each branch in one place
    assert [faces[6 * way : 6 * way + 6].count(diagrams.SHARED) for way in range(4)] == [0, 3, 3, 6]
    places = {tuple(patch.get_xy()[0]) for patch in axes.patches if type(patch) is Polygon}
    assert len(places) == 6 + 4 + 4 + 2


def test_the_presets_differ_in_what_starts_at_zero_and_in_a_layernorm():
    figure = diagrams.starts()
    maps = [patch for patch in figure.axes[0].patches if type(patch) is Polygon]
    hollow = [mcolors.to_hex(patch.get_facecolor()) == "#ffffff" for patch in maps]
    assert hollow == [True, True, True, False, True, False]  # vision, text, cross: of paper(), then of official()
    assert [text.get_text() for text in figure.axes[0].texts].count("LN$_x$") == 1


def test_the_multimodal_layer_names_what_each_branch_reads():
    found = words(diagrams.multimodal())
    assert {"$A_{text}(a)$", "$A_{cross}(c)$", "$a$", "$c$", "LN($a$ + CrossAttn($a, e$))"} <= found


def test_the_cross_branch_has_two_ups_in_the_colours_of_their_branches():
    maps = [patch for patch in diagrams.cross_branch().axes[0].patches if type(patch) is Polygon]
    colours = [mcolors.to_hex(patch.get_facecolor()) for patch in maps]
    assert colours == [diagrams.SHARED, viz.COLOURS["cross"], viz.COLOURS["text"]]


def test_a_clip_is_drawn_with_the_tokens_of_each_frame_and_a_black_cls():
    figure = diagrams.frames(count=3, patches=4)
    faces = [mcolors.to_hex(patch.get_facecolor()) for patch in figure.axes[0].patches if type(patch) is Rectangle]
    assert faces == 3 * [diagrams.SHARED, *4 * [viz.COLOURS["vision"]]]
    assert {"frame 1", "frame 3", "patches: keys $· m_{3}$"} <= words(figure)


def test_every_tower_of_the_speaking_models_has_the_branches_of_its_layers():
    figure = diagrams.decoders()
    written = [text.get_text() for text in figure.axes[0].texts]
    assert [written.count(f"$A_{{{branch}}}$") for branch in ("vision", "text", "cross")] == [2, 3, 3]
    assert written.count("vision encoder") == 2 and written.count("$e$") == 2 and written.count("$q$") == 1
    assert {"question encoder", "answer decoder", "caption decoder"} <= set(written)
