"""All views of the microscope in a real JupyterLab: every control moved by keyboard and by mouse in headless Chromium.

    SCREENSHOTS=notebooks/images/microscope python -m pytest tests/test_browser.py      # also makes README's pictures

Each move must change the pictures that it should, in the view that it is in, and no other on the page. A table of
latencies is printed at the end, and nothing of it asserted: how fast a machine is says nothing about the code.
"""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from microscope_views import MOVES, TILES, TYPED, latency_table

from uniadapter_edu.widgets import page_name

TESTS = Path(__file__).resolve().parent
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
TOKEN = "microscope"
START, REACTION = 600, 120  # seconds that the page with its kernel may take, and one picture
SCREENSHOT_WIDTH = 620  # pixels
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"

BUILD = f"""\
import json, sys
sys.path.insert(0, {str(TESTS)!r})
import microscope_views, psutil
views = microscope_views.build().views
"""
READY = """\
labels = {name: {key: [c.description, type(c).__name__] for key, c in v.controls.items()} for name, v in views.items()}
print('READY' + json.dumps({'labels': labels, 'mb': psutil.Process().memory_info().rss / 1e6}))
"""
CELLS = [BUILD, *(f"views[{name!r}]" for name in MOVES), READY]
SETTINGS = {
    "notebook-extension/tracker.jupyterlab-settings": {
        "windowingMode": "none"
    },  # what is out of sight stays on the page
    "apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false"},  # nothing asks, over the views
}
# Ends a while after the control was moved, and says whether the picture was still the same then.
WAITING = """\
import time
control, picture = views[{name!r}].controls["bottleneck"], views[{name!r}].pictures["bars"]
value, png, until = control.value, picture.value, time.monotonic() + 20
print("RUNNING", flush=True)
while control.value == value and time.monotonic() < until:
    time.sleep(0.05)
time.sleep(2)
print(picture.value == png)
"""
TIMED = "import json, microscope_views\nprint('TIMED' + json.dumps(microscope_views.kernel_milliseconds(views)))"

VIEWS = ", ".join(f".{page_name(view)}" for view in MOVES)
PICTURES = 'img[class*="microscope-"]'
N_PICTURES = sum(len(set().union(*map(set.union, *zip(*moves.values())))) for moves in MOVES.values())

# Notes when the last key or button went, when the last picture came, and which of the page's messages to the widgets in the
# kernel are not dealt with yet.
WATCH = """() => {
  window.moved = 0; window.shown = 0; window.pending = new Set();
  window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.anyMessage.connect((_, {msg, direction}) => {
    if (direction === 'send' && msg.header.msg_type === 'comm_msg') window.pending.add(msg.header.msg_id);
    if (msg.header.msg_type === 'status' && msg.content.execution_state === 'idle')
      window.pending.delete(msg.parent_header.msg_id);
  });
  for (const kind of ['keydown', 'mouseup']) window.addEventListener(kind, () => { window.moved = performance.now(); }, true);
  document.addEventListener('load', event => {
    if (event.target.tagName === 'IMG') window.shown = performance.now(); }, true);
  window.pictures = () => [...document.querySelectorAll('PICTURES')];
  window.pictures().forEach((img, i) => { img.dataset.node = i; });
}""".replace("PICTURES", PICTURES)
# Once no message is pending and all that came of them is on the page: pictures by their bytes.
HASHES = """async () => {
  const drawn = () => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  await drawn();
  while (window.pending.size) { await new Promise(done => setTimeout(done, 10)); await drawn(); }
  const found = {};
  for (const img of window.pictures()) {
    const bytes = await (await fetch(img.src)).arrayBuffer();
    const digest = new Uint8Array(await crypto.subtle.digest('SHA-1', bytes));
    found[[...img.classList].find(name => name.startsWith('microscope-'))] = Array.from(digest).join();
  }
  return found;
}"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # run, too: some distributions have a program of that name that only asks for another package
        programs = (path for path in map(shutil.which, CHROMIUM) if path and not subprocess.call([path, "--version"]))
        program = next(programs, playwright.chromium.executable_path)
        if not Path(program).exists():
            pytest.skip("no Chromium is installed: apt-get install chromium, or python -m playwright install chromium")
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS.split())
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a notebook with all views, in a JupyterLab with nobody's settings but these."""
    folder = tmp_path_factory.mktemp("lab")
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "views.ipynb")
    for plugin, settings in SETTINGS.items():
        path = folder / "config" / "lab" / "user-settings" / "@jupyterlab" / plugin
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(settings))
    places = {f"JUPYTER_{kind.upper()}_DIR": str(folder / kind) for kind in ("config", "data", "runtime")}
    env = os.environ | places | {"PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ.get("PYTHONPATH", "")])}
    port = free_port()
    options = f"--no-browser --allow-root --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0 --IdentityProvider.token={TOKEN}"
    options += f" --ServerApp.root_dir={folder} --expose-app-in-browser --LabApp.extension_manager=readonly"
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options.split()], env=env, stdout=log, stderr=log
        )
    try:
        wait_for_server(f"http://127.0.0.1:{port}/api?token={TOKEN}", server, folder / "log")
        yield f"http://127.0.0.1:{port}/lab/tree/views.ipynb?token={TOKEN}&reset"
    finally:
        server.terminate()  # which ends its kernels
        server.wait(START)


def wait_for_server(address: str, server: subprocess.Popen, log: Path):
    for _ in range(2 * START):
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(address, timeout=5).close()
        time.sleep(0.5)
    raise AssertionError(f"JupyterLab did not start in {START} s:\n{log.read_text()}")


@pytest.fixture(scope="module")
def page(browser, lab):
    """The notebook after all its cells have run; ``page.labels``: view -> control -> (label, kind); ``page.mb``: the
    kernel's memory."""
    page = browser.new_page(viewport={"width": 1366, "height": 1300})
    page.set_default_timeout(1000 * START)
    page.goto(lab)
    page.evaluate("async () => { while (!window.jupyterapp) await new Promise(r => setTimeout(r, 100));"
                  " await window.jupyterapp.restored; }")  # fmt: skip
    page.wait_for_function("() => window.jupyterapp.shell.currentWidget?.context?.isReady")
    page.evaluate("async () => { const c = window.jupyterapp.shell.currentWidget.sessionContext; await c.ready; }")
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
    ready = printed(page, "READY")
    page.wait_for_function(f"() => document.querySelectorAll({PICTURES!r}).length === {N_PICTURES}")
    page.wait_for_function(f"() => [...document.querySelectorAll({PICTURES!r})].every(img => img.naturalWidth)")
    page.evaluate(WATCH)
    page.labels, page.mb, page.milliseconds = ready["labels"], ready["mb"], []
    return page


def printed(page, word: str):
    """What a cell printed behind `word`. An error in a cell ends the wait."""
    output = page.locator(".jp-OutputArea-output", has_text=re.compile(rf"^\s*{word}[\[{{]"))
    failure = page.locator('.jp-OutputArea-output[data-mime-type*="error"], .jp-RenderedText[data-mime-type*="stderr"]')
    for _ in range(10 * START):
        if output.count():
            return json.loads(output.first.inner_text().strip().removeprefix(word))
        assert not failure.count(), failure.first.inner_text()
        page.wait_for_timeout(100)
    raise AssertionError(f"no cell printed {word} in {START} s")


def view_of(page, name: str):
    return page.locator(f".{page_name(name)}")


def control_of(page, view: str, key: str):
    """(the control's box on the page, its kind)."""
    label, kind = page.labels[view][key]
    text = page.get_by_text(label, exact=True)
    return view_of(page, view).locator(".widget-inline-hbox, .widget-toggle-buttons", has=text).first, kind


def by_keyboard(page, box, kind: str):
    if kind == "Checkbox":
        box.locator("input").focus()
        page.keyboard.press("Space")
    elif kind == "ToggleButtons":
        box.locator("button:not(.mod-active)").first.focus()
        page.keyboard.press("Enter")
    elif kind == "Text":
        box.locator("input").focus()
        page.keyboard.press("Control+A")
        page.keyboard.type(TYPED)
        page.keyboard.press("Enter")
    else:
        box.locator(".noUi-handle").focus()
        page.keyboard.press("ArrowRight")


def by_mouse(page, box, kind: str):
    if kind == "Checkbox":
        box.locator("input").click()
    elif kind == "ToggleButtons":
        box.locator("button:not(.mod-active)").last.click()
    elif kind == "Text":
        box.locator("input").click(click_count=3)
        page.keyboard.type("just one tiny fox upon emerald")
        box.locator("label").click()  # anywhere else
    else:
        handle, track = box.locator(".noUi-handle").bounding_box(), box.locator(".noUi-base").bounding_box()
        at = handle["x"] + handle["width"] / 2
        to = track["x"] + track["width"] * (0.1 if at > track["x"] + track["width"] / 2 else 0.9)  # the far end, nearly
        y = handle["y"] + handle["height"] / 2
        page.mouse.move(at, y)
        page.mouse.down()
        page.mouse.move((at + to) / 2, y)
        page.mouse.move(to, y)
        page.mouse.up()


def changes(page, before: dict, must: set) -> set:
    """Which pictures changed, once all of `must` have, or could have had by now."""
    until, changed = time.monotonic() + REACTION, set()
    while time.monotonic() < until:
        now = page.evaluate(HASHES)
        found, changed = changed, {name for name in now if now[name] != before[name]}
        if must <= changed == found:  # twice: a message could have been under way to the page when it was asked first
            return changed
        page.wait_for_timeout(20)
    return changed


def move(page, view: str, key: str, how) -> None:
    """Move a control and see that the right pictures change and no others."""
    must, may = ({page_name(view, picture) for picture in pictures} for pictures in MOVES[view][key])
    box, kind = control_of(page, view, key)
    box.scroll_into_view_if_needed()
    before = page.evaluate(HASHES)
    how(page, box, kind)
    changed = changes(page, before, must)
    assert must <= changed, f"{view}, {key}, {how.__name__}: {must - changed} did not change"
    assert changed <= must | may, f"{view}, {key}, {how.__name__}: {changed - must - may} should not have changed"
    milliseconds = page.evaluate("() => window.shown - window.moved")
    if milliseconds > 0:  # else the last key or button came after the picture
        page.milliseconds.append((view, milliseconds))


@pytest.mark.parametrize("view", MOVES)
def test_every_control_moves_its_pictures_and_no_others(view, page):
    keep_screenshot(page, view)
    for key in MOVES[view]:
        move(page, view, key, by_keyboard)
        move(page, view, key, by_mouse)
    assert not view_of(page, view).locator('[role="alert"]').count()


def test_a_picture_that_is_clicked_shows_its_captions(page):
    view, captions = "Before and after", {page_name("Before and after", "captions")}
    for tile, press in (
        ("frozen 2", lambda b: b.click()),
        ("adapted 3", lambda b: (b.focus(), page.keyboard.press("Enter"))),
    ):
        before = page.evaluate(HASHES)
        press(view_of(page, view).locator(f'button[title="captions of {tile}"]'))
        assert changes(page, before, captions) == captions
    assert len(TILES) == view_of(page, view).locator("button[title]").count()


def test_an_error_is_shown_in_the_view_and_goes_when_it_is_put_right(page):
    alert = view_of(page, "Ledger").locator('[role="alert"]')
    boxes = [control_of(page, "Ledger", name)[0].locator("input") for name in ("vision", "text", "cross")]
    for box in boxes:
        box.set_checked(False)
    alert.wait_for()
    assert "modalities is ()" in alert.inner_text()
    before = page.evaluate(HASHES)
    boxes[1].set_checked(True)
    changes(page, before, {page_name("Ledger", "bars")})
    assert not alert.count()


def test_pictures_are_renewed_in_place_and_all_fits(page):
    """No picture's element was taken off the page in all of this, which is what flickers; and Binder gives 2 GB."""
    nodes = page.evaluate("() => window.pictures().map(img => img.dataset.node)")
    assert nodes == [str(i) for i in range(len(nodes))]
    widths = page.evaluate(
        """names => [...document.querySelectorAll(names)].map(v => v.scrollWidth - v.clientWidth)""", VIEWS
    )
    assert max(widths) <= 0, "a view is wider than its cell"
    assert page.mb < 2000


def test_a_control_that_moves_while_a_cell_runs_is_answered_at_its_end(page):
    name = "Ledger"
    box, kind = control_of(page, name, "bottleneck")
    before = page.evaluate(HASHES)
    start_cell(page, WAITING.format(name=name))
    page.wait_for_function("() => window.said.includes('RUNNING')")
    by_keyboard(page, box, kind)
    assert end_of_cell(page).split() == ["RUNNING", "True"]
    assert changes(page, before, {page_name(name, "bars")}) == {page_name(name, "bars")}


def test_latencies_are_printed(page, request):
    start_cell(page, TIMED)
    text = end_of_cell(page)
    assert text.startswith("TIMED"), text
    kernel = json.loads(text.removeprefix("TIMED"))
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(
            "\n\n"
            + latency_table(kernel, page.milliseconds)
            + f"\nthe kernel holds {page.mb:.0f} MB with all views alive"
            + f"\n{os.cpu_count()} CPU cores, {os.getloadavg()[0]:.1f} processes that want them (mean of a minute)"
        )
    assert len(kernel) == 2 * sum(map(len, MOVES.values())) and page.milliseconds


def start_cell(page, source: str) -> None:
    page.evaluate(
        "source => { const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;"
        " const future = kernel.requestExecute({code: source}); window.said = ''; window.ended = future.done;"
        " future.onIOPub = m => { window.said += m.content.text || (m.content.ename ? JSON.stringify(m.content) : ''); };"
        " }",
        source,
    )


def end_of_cell(page) -> str:
    """What it printed, or its error."""
    return page.evaluate("async () => { await window.ended; return window.said; }")


def keep_screenshot(page, view: str) -> None:
    """A picture of the view as it is first shown, small, if a folder for it was asked for."""
    folder = os.environ.get("SCREENSHOTS")
    if not folder:
        return
    from PIL import Image

    path = Path(folder) / f"{view.lower().replace(' ', '_')}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    view_of(page, view).screenshot(path=path)
    picture = Image.open(path).convert("RGB")
    picture.thumbnail((SCREENSHOT_WIDTH, SCREENSHOT_WIDTH * 2), Image.Resampling.LANCZOS)
    picture.quantize(200).save(path, optimize=True)
