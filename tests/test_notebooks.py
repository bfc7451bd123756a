"""The course: every notebook runs quickly from an installed wheel, gives its committed outputs, and has the form it should.

Notebooks run in processes of their own, at most two at a time with one thread each, while this process waits. Nothing is
started, and nothing heavy imported, unless a test here is run. See notebooks/make.py, which does the work.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
HANG = 1200  # seconds; a notebook takes about a minute
LARGEST_PEAK = 2000  # MB, what Binder gives
LARGEST_PICTURE = 60_000  # bytes
MODEL = "03_one_bottleneck_adapter"  # a notebook that the tests of make.py itself take apart
PUBLISHED = "A_paper_and_code"
REAL = "11_a_real_blip"
SPEAKING = "09_questions_and_captions"

spec = importlib.util.spec_from_file_location("make", ROOT / "notebooks" / "make.py")
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)

# A package with a mistake in it, and the notebook that teaches the point and therefore has to fail:
# notebook, file, what is there, what a mistake makes of it.
BROKEN = [
    # the copies of the heads start at random
    (
        "00_quickstart",
        "adapter.py",
        "copy.load_state_dict(original.state_dict())",
        "copy.reset_parameters()",
    ),
    # the adapter reads what the MLP gives, not u
    (MODEL, "insertion.py", "output + layer.vision(u)", "output + layer.vision(output)"),
    # up-projections start at random
    (MODEL, "adapter.py", "if identity or branch", "if branch"),
    # the scale is forgotten
    (MODEL, "adapter.py", 'return self.scale * self._up("vision")', 'return self._up("vision")'),
    # the adapters' LayerNorms are frozen
    (MODEL, "adapter.py", "self.norm_in = nn.LayerNorm(D)", "self.norm_in = nn.LayerNorm(D).requires_grad_(False)"),
    # a picture's feature is taken from its first patch, not from [CLS]
    ("01_meet_blip", "tasks/retrieval.py", "model.vision_proj(tokens[:, 0])", "model.vision_proj(tokens[:, 1])"),
    # the second stage orders by how much the matching head says no
    ("01_meet_blip", "tasks/retrieval.py", "*texts.tokens(text), w)[..., 1]", "*texts.tokens(text), w)[..., 0]"),
    # freezing forgets the biases
    (
        "02_freeze_the_backbone",
        "insertion.py",
        "if parameter not in own:",
        "if parameter not in own and parameter.ndim > 1:",
    ),
    # the text adapter reads what the layer gives, not a
    ("04_unimodal_adapters", "insertion.py", "f = f + layer.text(a)", "f = f + layer.text(f)"),
    # the query residual reads c, what is behind cross-attention, and not a
    ("05_cross_modal_adapters", "insertion.py", "f = f + layer.text(a)", "f = f + layer.text(inner)"),
    # the cross branch reads a, and never sees what was found in the picture
    ("05_cross_modal_adapters", "insertion.py", "f = f + layer.cross(inner)", "f = f + layer.cross(a)"),
    # the cross branch does not reuse the text up-projection
    ("05_cross_modal_adapters", "adapter.py", 'delta = delta + self._up("text")(z)', "pass"),
    # every branch has a down-projection of its own
    ("06_weight_sharing", "adapter.py", 'config.share in ("down", "all"),', 'config.share == "all",'),
    # captions that belong to a picture are drawn as its mismatches
    ("07_train_on_a_small_subset", "losses.py", '.masked_fill(same.cpu(), float("-inf"))', ""),
    # pictures need not be found by their captions
    ("07_train_on_a_small_subset", "losses.py", "(image_to_text + text_to_image) / 2", "image_to_text"),
    # a clip's feature is that of its first frame
    ("08_video_and_frames", "insertion.py", "cls.mean(dim=1)", "cls[:, 0]"),
    # the keys of a frame's CLS are scaled, too
    ("08_video_and_frames", "attention.py", "torch.cat([cls, m * patches]", "torch.cat([m * cls, m * patches]"),
    # the answer decoder has no adapters
    (
        SPEAKING,
        "insertion.py",
        'texts["kv_decoder"] = model.text_decoder.bert.encoder',
        'texts.setdefault("kv", model.text_decoder.bert.encoder)',
    ),
    # padding is learned like words
    (SPEAKING, "losses.py", "input_ids[:, 1:].masked_fill(attention_mask[:, 1:] == 0, IGNORED)", "input_ids[:, 1:]"),
    # the decoder looks at the padding of questions, as transformers' does
    (SPEAKING, "tasks/language.py", '"encoder_attention_mask": states_mask}', '"encoder_attention_mask": None}'),
    # the mean over a caption's tokens counts [DEC], which is never said
    (SPEAKING, "tasks/captioning.py", '["attention_mask"][:, 1:].sum()', '["attention_mask"].sum()'),
    # ranked answers keep the order of their first words, and only their scores are sorted
    (SPEAKING, "tasks/answering.py", "return chosen.gather(1, order), scores", "return chosen, scores"),
    # whichever adapter is asked for, the first one stays at work
    (
        SPEAKING,
        "insertion.py",
        "wiring.active = wiring.sets[name]",
        "wiring.active = wiring.active or wiring.sets[name]",
    ),
    # LoRA gets its budget without its heads
    ("10_compare_and_ablate", "methods.py", "round((parameters - heads) / per_rank)", "round(parameters / per_rank)"),
    # the console's dial of the scale turns nothing
    ("12_adapter_microscope", "microscope/dials.py", "scale=factor * layer.scale", "scale=layer.scale"),
    # LN_x is frozen, as by the authors' accident
    (PUBLISHED, "adapter.py", "norm_cross = nn.LayerNorm(D)", "norm_cross = nn.LayerNorm(D).requires_grad_(False)"),
    # the cross branch forgets LN_x
    (PUBLISHED, "adapter.py", "delta = self.norm_cross(delta)", "delta = delta"),
    # the published start is the identity
    (PUBLISHED, "adapter.py", 'if identity or branch == "text":', "if branch:"),
    # the momentum copy moves twice
    (PUBLISHED, "momentum.py", "m.lerp_(trained[name], 1 - decay)", "m.lerp_(trained[name], 1 - decay**2)"),
    # captions are not read as BLIP was trained on them
    (REAL, "worlds/benchmarks.py", "text.lower()", "text"),
    # loading puts adapters in, and leaves them as they start
    (REAL, "checkpoint.py", "named_adapters(model)[name].load_state_dict(tensors)", "named_adapters(model)[name]"),
]

# ------------------------------------------------------------------------------------------------------------- running


def start(arguments: list, folder: Path, package: Path | None = None) -> dict:
    """Runs make.py in `folder` and returns what it reports. A hang is an error like others."""
    env = (
        os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | ({"PYTHONPATH": str(package)} if package else {})
    )
    command = [sys.executable, ROOT / "notebooks" / "make.py", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **pipes)
    try:
        out, err = process.communicate(timeout=HANG)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # its kernel ends by itself when its parent is gone
        process.communicate()
        return {"error": f"{' '.join(map(str, arguments))} took more than {HANG} s: it hangs."}
    return json.loads(out) if out.startswith("{") else {"error": out + err}


@pytest.fixture(scope="module")
def results(request, tmp_path_factory):
    """("quick" or "rerun", name) -> a future of the report, for the notebooks that are to be tested; a table at the end."""
    wanted = [item.callspec.params["name"] for item in request.session.items if item.originalname in RUNNING]
    installed = request.getfixturevalue("installed_wheel")
    futures = {}
    with ThreadPoolExecutor(2) as pool:
        for name in dict.fromkeys(wanted):
            quick, rerun = (tmp_path_factory.mktemp(f"{command}-{name}") for command in ("quick", "rerun"))
            futures["quick", name] = pool.submit(start, ["quick", name], quick, installed)
            futures["rerun", name] = pool.submit(start, ["rerun", name], rerun)
        yield futures
        pool.shutdown(cancel_futures=True)
    finished = {key: f.result() for key, f in futures.items() if f.done() and not f.cancelled()}
    rows = [table_row(name, finished) for name in dict.fromkeys(wanted)]
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\n\n" + make.table_text(rows))


def table_row(name: str, finished: dict) -> dict:
    quick, rerun = finished.get(("quick", name), {}), finished.get(("rerun", name), {})
    row = {"name": name, "quick seconds": quick.get("seconds", ""), "seconds": rerun.get("seconds", "")}
    return row | {"peak_mb": rerun.get("peak_mb", "")} | make.counts(ROOT / "notebooks" / f"{name}.ipynb")


RUNNING = ("test_it_runs_quickly_from_an_installed_wheel", "test_it_gives_its_committed_outputs_within_2_GB")


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_quickly_from_an_installed_wheel(name, results):
    """As on Colab: an empty folder, and the package as the wheel installs it. With quick=True, by papermill."""
    error = results["quick", name].result()["error"]
    assert not error, error


@pytest.mark.parametrize("name", NAMES)
def test_it_gives_its_committed_outputs_within_2_GB(name, results):
    """At its defaults, compared by nbval without leniency."""
    report = results["rerun", name].result()
    assert not report["error"], report["error"]
    assert report["peak_mb"] < LARGEST_PEAK, f"{name} takes {report['peak_mb']} MB, and Binder gives {LARGEST_PEAK}."


@pytest.mark.parametrize(("name", "file", "right", "wrong"), [case for case in BROKEN if case[0] in NAMES])
def test_a_broken_package_fails_in_the_notebook_that_teaches_the_point(
    name, file, right, wrong, installed_wheel, tmp_path
):
    package, folder = tmp_path / "site" / "uniadapter_edu", tmp_path / "empty"
    shutil.copytree(installed_wheel / "uniadapter_edu", package, ignore=shutil.ignore_patterns("_data", "__pycache__"))
    (package / "_data").symlink_to(installed_wheel / "uniadapter_edu" / "_data")
    folder.mkdir()
    source = (package / file).read_text()
    assert source.count(right) == 1, f"{file} has changed: choose another mistake"
    (package / file).write_text(source.replace(right, wrong))
    error = start(["quick", name], folder, package.parent)["error"] or ""
    assert re.match(rf"{name}.ipynb, code cell \d+, AssertionError", error), error or "no cell noticed it"


def test_the_real_blip_takes_its_checkpoint_and_its_data_from_parameters(make_blip, processor, tmp_path):
    """A checkpoint in transformers' format and parquet files with Flickr30k's columns, neither of them the stand-in."""
    from datasets import Dataset
    from PIL import Image
    from small_world import WORDS

    make_blip().save_pretrained(tmp_path / "blip")
    processor.save_pretrained(tmp_path / "blip")
    (tmp_path / "flickr" / "data").mkdir(parents=True)
    for split in ("train", "val", "test"):
        rows = [
            {
                "image": Image.new("RGB", (40, 30), (6 * i, 0, 99)),
                "caption": [f"A {word} cat, {WORDS[i]}." for word in ("red", "big", "small", "blue", "left")],
                "sentids": [str(5 * i + j) for j in range(5)],
                "split": split,
                "img_id": str(i),
                "filename": f"{i}.jpg",
            }
            for i in range(16)
        ]
        Dataset.from_list(rows).to_parquet(tmp_path / "flickr" / "data" / f"{split}-00000-of-00001.parquet")
    sources = {"backbone": str(tmp_path / "blip"), "photographs": str(tmp_path / "flickr")}
    (tmp_path / "empty").mkdir()
    path, output = ROOT / "notebooks" / f"{REAL}.ipynb", tmp_path / "executed.ipynb"
    make.run(path, output, {"quick": True} | sources, tmp_path / "empty")
    printed = "".join(out.get("text", "") for cell in make.code_cells(make.read(output)) for out in cell.outputs)
    assert "16 pictures to train on; 16 with 80 captions to search" in printed
    assert "pictures of 32 px, width 32" in printed and "80 captions, 16 images" in printed


# ---------------------------------------------------------------------------------------------------------------- form


@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_form_it_should(name):
    assert not (found := make.problems(ROOT / "notebooks" / f"{name}.ipynb")), "\n".join(found)


@pytest.mark.parametrize("name", NAMES)
def test_its_picture_is_small_and_its_own(name, tmp_path, monkeypatch):
    path = ROOT / "notebooks" / "images" / f"{name}.png"
    assert path.stat().st_size < LARGEST_PICTURE
    monkeypatch.setattr(make, "FOLDER", tmp_path)
    make.save_picture(make.read(ROOT / "notebooks" / f"{name}.ipynb"), path)
    assert (tmp_path / "images" / f"{name}.png").read_bytes() == path.read_bytes(), "run `make.py execute`"


def test_both_maps_and_all_badges_are_as_they_should_be():
    for path, text in make.pages().items():
        assert path.read_text() == text, f"{path.name}: run `python notebooks/make.py stamp`"
    for name in NAMES:
        text = (ROOT / "notebooks" / f"{name}.ipynb").read_text()
        repositories = set(
            re.findall(r"(?:colab.research.google.com/github|mybinder.org/v2/gh|github.com)/([\w.-]+/uni[\w.-]+)", text)
        )
        assert repositories == {make.repository()}, f"{name}: run `python notebooks/make.py stamp`"
        assert make.badges(make.repository(), name) in text


def test_the_index_links_what_exists_and_nothing_else():
    links = re.findall(r"\]\((\w+)\.ipynb\)", (ROOT / "notebooks" / "README.md").read_text())
    assert set(links) == set(NAMES)


def spoil(change):
    """`change` as a function of a notebook's path."""

    def spoilt(path):
        notebook = make.read(path)
        change(notebook)
        make.write(notebook, path)

    return spoilt


def drop_alternative_text(notebook):
    make.figures(notebook)[0][1].metadata["image/png"].pop("alt")


def add_error(notebook):
    output = {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}
    make.code_cells(notebook)[2].outputs.append(make.nbformat.from_dict(output))


def add_warning(notebook):
    output = {"output_type": "stream", "name": "stderr", "text": "a warning"}
    make.code_cells(notebook)[2].outputs.append(make.nbformat.from_dict(output))


def print_a_path(notebook):
    output = {"output_type": "stream", "name": "stdout", "text": "saved in /home/someone/runs\n"}
    make.code_cells(notebook)[2].outputs.append(make.nbformat.from_dict(output))


def replace_in_prose(old, new):
    def change(notebook):
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = cell.source.replace(old, new)

    return change


FAULTS = {
    "are not counted": lambda n: make.code_cells(n)[3].update(execution_count=None),
    "ends in ValueError": add_error,
    "writes to stderr": add_warning,
    "is another on every machine": print_a_path,
    "its metadata hold widgets": lambda n: n.metadata.update(widgets={}),
    "of its cells hold papermill": lambda n: n.cells[1].metadata.update(papermill={}),
    "not the one that installs": lambda n: make.code_cells(n)[0].update(source="%pip install torch"),
    "not tagged `parameters`": lambda n: make.code_cells(n)[1].metadata.pop("tags"),
    "has 21 lines": lambda n: make.code_cells(n)[4].update(source="x = 1\n" * 21),
    "has a line of 120": lambda n: make.code_cells(n)[4].update(source="#" * 120),
    "wider than": lambda n: make.figures(n)[0][1].metadata["image/png"].update(width=2000),
    "no alternative text": drop_alternative_text,
    "lacks ## Summary": replace_in_prose("## Summary", "## The end"),
    "expected two to four": replace_in_prose("### Exercise", "### Question"),
    "Exercise 1 has no folded hint": replace_in_prose("<details>", ""),
    "words of code than of prose": lambda n: make.code_cells(n)[4].update(source="# so many words of code\n" * 3000),
    "does not begin with the title": lambda n: n.cells[0].update(source="# A title\n"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_form_is_found_and_named(fault, tmp_path):
    path = tmp_path / f"{MODEL}.ipynb"
    shutil.copy(ROOT / "notebooks" / path.name, path)
    assert make.problems(path) == []
    spoil(FAULTS[fault])(path)
    assert any(fault in problem for problem in make.problems(path))


# ------------------------------------------------------------------------------------------------------------- make.py


def test_one_command_stamps_the_address_everywhere(tmp_path, monkeypatch):
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(make, "ROOT", tmp_path)
    monkeypatch.setattr(make, "FOLDER", tmp_path / "notebooks")
    assert make.main(["stamp", "--repository", "someone/a-fork"]) == 0
    pages = [tmp_path / "README.md", *(tmp_path / "notebooks").glob("*.ipynb"), tmp_path / "notebooks" / "README.md"]
    for page in pages:
        assert "someone/a-fork" in page.read_text() and "OWNER/" not in page.read_text()
    assert all(make.problems(path) == [] for path in make.find([]))
    assert make.main(["stamp", "--repository", "no address"]) == 1


def test_a_notebook_that_does_not_exist_is_said_so(capsys):
    assert make.main(["check", "99"]) == 1
    assert "No notebook begins with '99'" in capsys.readouterr().err


def test_a_failing_cell_is_named_with_its_error(tmp_path):
    new = make.nbformat.v4
    cells = [
        new.new_code_cell(source) for source in ("quick = False", "print('fine')", "assert quick, 'the mistake'\n1 / 0")
    ]
    cells[0].metadata["tags"] = ["parameters"]
    notebook = new.new_notebook(cells=cells)
    make.tidy(notebook)
    make.write(notebook, tmp_path / "bad.ipynb")
    (tmp_path / "empty").mkdir()
    report = start(["quick", tmp_path / "bad.ipynb"], tmp_path / "empty")
    # papermill adds a cell with the parameters, behind the first one
    assert report["error"].startswith("bad.ipynb, code cell 4, ZeroDivisionError: division by zero")
    assert "1 / 0" in report["error"] and report["seconds"] > 0 and report["peak_mb"] > 20


def test_an_unknown_parameter_is_refused(tmp_path):
    notebook = make.nbformat.v4.new_notebook(cells=[make.nbformat.v4.new_code_cell("swift = True")])
    make.tidy(notebook)
    make.write(notebook, tmp_path / "other.ipynb")
    with pytest.raises(make.Mistake, match="no parameter quick"):
        make.run(tmp_path / "other.ipynb", tmp_path / "out.ipynb", {"quick": True}, tmp_path)


def test_outputs_that_changed_are_reported_with_both_values(tmp_path):
    cell = make.nbformat.v4.new_code_cell("print('new')", execution_count=1)
    cell.outputs = [make.nbformat.v4.new_output("stream", name="stdout", text="old\n")]
    notebook = make.nbformat.v4.new_notebook(cells=[cell])
    make.tidy(notebook)
    make.write(notebook, tmp_path / "changed.ipynb")
    with pytest.raises(make.Mistake, match=r"changed\.ipynb gives other outputs(?s:.*)Cell 0(?s:.*)old(?s:.*)new"):
        make.compare(tmp_path / "changed.ipynb")


# -------------------------------------------------------------------------------------------------------------- Binder


def test_binder_takes_torch_from_conda_and_never_from_pip():
    environment = (ROOT / "binder" / "environment.yml").read_text()
    assert "pytorch-cpu" in environment and "python=3.11" in environment
    (filtered,) = re.findall(
        r"^grep -v '(.+)' requirements.txt", (ROOT / "binder" / "postBuild").read_text(), re.MULTILINE
    )
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line.split("==")[0] for line in lines if re.search(filtered, line)] == ["torch"]


def test_binders_script_can_be_run():
    subprocess.run(["bash", "-n", ROOT / "binder" / "postBuild"], check=True)
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK)
