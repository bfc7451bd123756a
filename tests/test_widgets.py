"""Views in plain Python, where callbacks fire as they do on a page: which pictures change, errors, closing."""

from threading import Thread

import ipywidgets
import microscope_views
import pytest
import torch
from microscope_views import MOVES, another_value
from PIL import Image
from small_world import assert_untouched, frozen_bits, hooks_of

from uniadapter_edu import UniAdapterError, widgets
from uniadapter_edu.insertion import remove_adapters
from uniadapter_edu.microscope import load_specimen
from uniadapter_edu.widgets import page_name


@pytest.fixture(scope="module")
def built():
    return microscope_views.build()


def pictures_of(views) -> dict:
    return {(name, key): bytes(image.value) for name, view in views.items() for key, image in view.pictures.items()}


@pytest.mark.parametrize("name", MOVES)
def test_a_control_changes_its_pictures_and_no_others(name, built):
    view = built.views[name]
    assert MOVES[name].keys() == view.controls.keys()
    for key, (must, may) in MOVES[name].items():
        control, before, shown = view.controls[key], view.controls[key].value, pictures_of(built.views)
        control.value = another_value(control)
        now = pictures_of(built.views)
        changed = {picture for picture in now if now[picture] != shown[picture]}
        assert {(name, p) for p in must} <= changed <= {(name, p) for p in must | may}, key
        assert view.message.value == "", key
        control.value = before
        if key not in view._follow:  # else what followed stays where it went
            assert pictures_of(built.views) == shown, f"{key} does not come back"


def test_every_control_has_a_label_and_every_picture_a_name(built):
    for name, view in built.views.items():
        assert all(control.description for control in view.controls.values())
        assert all(image._dom_classes == (page_name(name, key),) for key, image in view.pictures.items())
        assert len(repr(view)) < 110 and "\\x89PNG" not in repr(view)  # what a notebook keeps where it does not run


def test_sliders_and_lines_wait_until_they_are_let_go(built):
    for view in built.views.values():
        for control in view.controls.values():
            assert not getattr(control, "continuous_update", False)


def test_a_text_follows_what_it_belongs_to_and_can_be_edited(built):
    for name, first, second in (("Console", "right", "query"), ("Frame explorer", "clip", "sentence")):
        controls = built.views[name].controls
        controls[first].value = 2
        given = controls[second].value
        controls[second].value = "just one fox"
        assert controls[first].value == 2 and controls[second].value == "just one fox" != given
        controls[first].value = 0


def test_a_picture_is_drawn_once_for_a_control_and_what_follows_it():
    drawn = []

    def draw(number, text):
        drawn.append((number, text))
        return Image.new("RGB", (len(text), number + 1))

    controls = {"number": widgets._slider("number", 5), "text": widgets._line("text", "a")}
    follow = {"number": ("text", lambda number: "a" * (number + 1))}
    view = widgets.View("Test", controls, {"p": (draw, ("number", "text"))}, follow)
    controls["number"].value = 2
    assert drawn == [(0, "a"), (2, "aaa")]
    controls["text"].value = "b"
    assert drawn[2:] == [(2, "b")] and controls["number"].value == 2
    view.close()


def test_a_control_that_moves_while_a_cell_runs_is_answered_at_its_end():
    """Newer kernels answer controls in a thread of their own, and the cell may be at work on the same model."""

    class Shell:  # as far as it is asked
        def __init__(self):
            self.hooks, self.events = {}, self

        def register(self, event, function):
            self.hooks[event] = function

    shell, drawn, controls = Shell(), [], {"number": widgets._slider("number", 5)}
    widgets._take_turns_with_cells(shell)

    def draw(number):
        drawn.append(number)
        return Image.new("RGB", (number + 1, 1))

    view = widgets.View("Test", controls, {"p": (draw, ("number",))})
    shell.hooks["post_run_cell"](None)  # of the cell that made the view
    for number in (2, 4):
        shell.hooks["pre_run_cell"](None)
        controls["number"].value = number - 1  # a cell may move it itself
        other = Thread(target=setattr, args=(controls["number"], "value", number))
        other.start()
        other.join(0.2)
        assert other.is_alive() and drawn[-1] == number - 1
        shell.hooks["post_run_cell"](None)
        other.join()
        assert drawn[-1] == number
    view.close()


@pytest.mark.parametrize("error", [UniAdapterError("<No> such thing.", "Take another."), ZeroDivisionError("by zero")])
def test_an_error_is_shown_the_picture_stays_and_other_pictures_go_on(error):
    def fragile(number, flag):
        if number == 1:
            raise error
        return Image.new("RGB", (2, 2), (number, 0, 0))

    def sound(number):
        return Image.new("RGB", (2, 2), (0, number, 0))

    controls = {"number": widgets._slider("number", 5), "flag": widgets._switch("flag")}
    view = widgets.View("Test", controls, {"a": (fragile, ("number", "flag")), "b": (sound, ("number",))})
    before = {key: bytes(image.value) for key, image in view.pictures.items()}
    controls["number"].value = 1
    shown = view.message.value
    assert 'role="alert"' in shown and ("&lt;No&gt; such" in shown or "ZeroDivisionError: by zero" in shown)
    assert bytes(view.pictures["a"].value) == before["a"] and bytes(view.pictures["b"].value) != before["b"]
    controls["flag"].value = False
    assert view.message.value  # still so
    controls["number"].value = 2
    assert view.message.value == ""
    view.close()


def test_a_click_on_a_picture_shows_its_captions(built):
    view = built.views["Before and after"]
    buttons = [w for w in everything(view) if isinstance(w, ipywidgets.Button)]
    assert [button.tooltip for button in buttons] == [
        f"captions of {name}" for name in view.pictures if name != "captions"
    ]
    before, chosen = bytes(view.pictures["captions"].value), view.controls["picture"].value
    for button in buttons[:3]:
        button.click()
    assert view.controls["picture"].value != chosen and bytes(view.pictures["captions"].value) != before


def everything(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from everything(child)


def test_closing_leaves_the_model_bit_identical_and_without_hooks_of_its_own():
    fresh = load_specimen()
    bits, hooks = frozen_bits(fresh), hooks_of(fresh)
    built = microscope_views.build()
    for view in built.views.values():
        for control in view.controls.values():
            control.value = another_value(control)
    for view in built.views.values():
        parts = list(everything(view))
        view.close()
        assert all(widget.comm is None for widget in parts)
    assert_untouched(built.model, bits, hooks)
    assert [layer.branches for layer in built.model.uniadapter.layers] == [l.branches for l in fresh.uniadapter.layers]
    assert hooks_of(remove_adapters(built.model)) == 0
    plain = remove_adapters(fresh)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), built.model.parameters()))
