"""The main job as its user runs it, made small: what it prints, what it leaves behind, what it says when it cannot."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from uniadapter_edu import quickstart as job
from uniadapter_edu.__main__ import main

SMALL = "quickstart --steps 2 --scenes 32 --gallery 12 --batch-size 16 --bottleneck 4".split()
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart")
    assert main([*SMALL, "--output", str(folder), "--methods", "all"]) == 0
    return folder, json.loads((folder / "results.json").read_text())


def test_every_method_has_its_row(small_run):
    _, saved = small_run
    results = {row["method"]: row for row in saved["results"]}
    assert tuple(results) == job.METHODS
    trained = {name: row["trainable"] for name, row in results.items()}
    assert trained["frozen"] == 0 < trained["linear probe"] < trained["UniAdapter"] < trained["full fine-tuning"]
    assert abs(trained["LoRA"] - trained["UniAdapter"]) < 0.5 * (trained["UniAdapter"] - trained["linear probe"])
    assert results["full fine-tuning"]["percent"] == 100
    assert all(row["disk_bytes"] >= 4 * row["trainable"] for row in saved["results"])


def test_it_leaves_adapters_and_figures_that_can_be_opened(small_run):
    folder, _ = small_run
    assert {f.name for f in (folder / "adapters").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    for name in ("gallery", "learning_curves", "methods", "before_after"):
        assert len(Image.open(folder / f"{name}.png").convert("RGB").getcolors(1 << 20)) > 20, "the figure is blank"


def test_the_same_command_goes_on_where_it_stopped(small_run, capsys):
    folder, saved = small_run
    times = {row["method"]: row["seconds_per_step"] for row in saved["results"]}
    assert main([*SMALL, "--output", str(folder), "--methods", "uniadapter"]) == 0
    out = capsys.readouterr().out
    again = {row["method"]: row for row in json.loads((folder / "results.json").read_text())["results"]}
    assert again["UniAdapter"]["seconds_per_step"] == times["UniAdapter"], "it trained again"
    assert again["UniAdapter"]["metrics"] == {r["method"]: r for r in saved["results"]}["UniAdapter"]["metrics"]
    assert "the same numbers" in out


def test_the_saved_run_is_shown_for_the_settings_it_was_made_with_and_for_no_others():
    result, history = job.saved_run("full fine-tuning", job.Settings())
    assert result.saved_run and history.finished and len(history.rows) == job.Settings().steps
    assert job.saved_run("full fine-tuning", job.Settings(seed=1)) == (None, None)
    assert job.table([result]).splitlines()[2].startswith("full fine-tuning*")


def test_the_readme_shows_the_recorded_table():
    saved = json.loads((ROOT / "data" / "quickstart" / "saved_runs.json").read_text())
    assert saved["settings"] == asdict(job.Settings())
    results = [job.Result.from_dict(saved["results"][name]) for name in job.METHODS]
    shown = re.search(r"<!-- table -->\n```\n(.*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    assert shown == job.table(results)


def test_the_recorded_run_keeps_what_the_project_promises():
    saved = json.loads((ROOT / "data" / "quickstart" / "saved_runs.json").read_text())["results"]
    r1 = {name: row["metrics"]["t2i_r1"] for name, row in saved.items()}
    assert r1["UniAdapter"] > r1["frozen"] + 0.1 and r1["UniAdapter"] > r1["linear probe"] + 0.1
    assert r1["full fine-tuning"] > r1["frozen"] + 0.2


def test_what_cannot_be_done_is_said_in_two_lines_and_an_exit_code(tmp_path, capsys):
    assert main([*SMALL, "--output", str(tmp_path), "--style", "cubist"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
    with pytest.raises(SystemExit):
        main(["quickstart", "--methods", "magic"])
