"""The five-task table: every task runs in the grid, learning rates come from validation scenes, and the table is right."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from small_world import WORDS

from uniadapter_edu import data_path, five_tasks, grid, quickstart
from uniadapter_edu.__main__ import main
from uniadapter_edu.accounting import trainable_parameters
from uniadapter_edu.backbones import load_backbone
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.five_tasks import (
    METHODS,
    SEEDS,
    TASKS,
    base_run,
    cells,
    choose_rates,
    rate_runs,
    rates_table,
    table,
    table_runs,
)
from uniadapter_edu.grid import Row
from uniadapter_edu.jobs import JOBS
from uniadapter_edu.tasks.answering import AnsweringMetrics

SMALL = replace(five_tasks.DEFAULTS, scenes=6, gallery=4, steps=2, batch_size=4, top_k=2)


def toy_world(column):
    def load(world, split, size, style):
        rng, rows = np.random.default_rng(len(split)), []
        for i in range(size):
            frames = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(2)]
            asked = {"question": f"big {WORDS[i % 8]}", "answer": WORDS[8 + i % 4], "kind": "what"}
            told = {"captions": [f"small {WORDS[i % 8]}"], "concepts": ["cat"], "colour": "red"}
            rows.append({column: frames[0] if column == "image" else frames, **asked, **told} | {"kind": "left"})
        return rows

    return load


@pytest.fixture
def tiny(monkeypatch, make_blip, processor):
    for module in (grid, quickstart):
        monkeypatch.setattr(module, "load_backbone", make_blip)
    monkeypatch.setattr(grid, "load_processor", lambda: processor)
    worlds = {world: toy_world("frames" if world.startswith("clip") else "image") for world in TASKS}
    monkeypatch.setattr(grid, "WORLDS", worlds)
    monkeypatch.setattr(five_tasks, "CLIPS", {"scenes": 5, "batch_size": 2})
    monkeypatch.setattr(five_tasks, "RATES", dict.fromkeys(METHODS[1:], (1e-3,)))
    monkeypatch.setattr(five_tasks, "BOTTLENECK", 4)


def test_all_five_tasks_give_a_table_that_is_read_again_and_recorded(tiny, tmp_path, capsys, monkeypatch):
    rows = five_tasks.five_tasks(tmp_path, seeds=(0,), settings=SMALL, progress=False)
    assert not [row.error for row in rows if row.error]
    assert len(rows) == len(TASKS) * len(METHODS)
    printed = capsys.readouterr().out
    for world in TASKS:
        assert JOBS[world].name in printed
        own = {row.run.method: row for row in rows if row.run.world == world}
        assert set(own) == set(METHODS) and isinstance(own["UniAdapter"].metrics, JOBS[world].metrics)
        assert own["frozen"].trainable == 0 < own["linear probe"].trainable < own["full fine-tuning"].trainable
        assert own["frozen"].peak_mb is None and own["UniAdapter"].peak_mb > 100
        assert own["full fine-tuning"].percent == 100 and 0 <= own["UniAdapter"].score <= 1
    assert all(Row.from_dict(row.to_dict()) == row for row in rows)
    assert sorted(map(repr, five_tasks.read(tmp_path))) == sorted(map(repr, rows))
    assert main(["tasks", "--folder", str(tmp_path), "--show", "--task", "captions"]) == 0
    shown = capsys.readouterr().out
    assert "captioning" in shown and "retrieval" not in shown
    again = five_tasks.five_tasks(tmp_path, seeds=(0,), settings=SMALL, progress=False)
    assert list(map(repr, again)) == list(map(repr, rows))  # times and memory, too: nothing ran again
    card = tmp_path / "data" / "five_tasks" / "README.md"
    card.parent.mkdir(parents=True)
    card.write_text("Before.\n<!-- table tasks -->\n```\nold\n```\n<!-- table rates -->\n```\nold\n```\nAfter.\n")
    monkeypatch.setattr(five_tasks, "data_path", lambda *parts: tmp_path.joinpath("data", *parts))
    assert main(["tasks", "--folder", str(tmp_path), "--show", "--record"]) == 0
    assert list(map(repr, five_tasks.read(card.parent))) == list(map(repr, rows))
    tried = rates_table(five_tasks.read(tmp_path, "tried"))
    expected = (
        f"Before.\n<!-- table tasks -->\n```\n{table(rows)}\n```\n<!-- table rates -->\n```\n{tried}\n```\nAfter.\n"
    )
    assert card.read_text() == expected and (card.parent / five_tasks.FIGURE).exists()


def test_learning_rates_are_chosen_on_validation_scenes(monkeypatch):
    monkeypatch.setattr(five_tasks, "RATES", dict.fromkeys(METHODS[1:], (1e-3, 2e-3)))
    tried = rate_runs("picture questions", SMALL, 1)
    assert {(run.split, run.settings.seed) for run in tried} == {("val", 1)}
    accuracy = dict(zip(tried, (0.1, 0.3, 0.2, 0.1, 0.5, 0.6)))
    rows = [Row(run, AnsweringMetrics(value, 9, {})) for run, value in accuracy.items()]
    assert choose_rates(rows) == {"linear probe": 2e-3, "UniAdapter": 1e-3, "full fine-tuning": 2e-3}
    line = next(line for line in rates_table(rows).splitlines() if "UniAdapter" in line)
    assert line.split() == "image questions UniAdapter 0.001: 20.0 0.002: 10.0".split()
    rows[4] = Row(tried[4], error="no")
    assert rates_table(rows).splitlines()[-1].split()[-4:] == "0.001: failed 0.002: 60.0".split()
    assert choose_rates(rows)["full fine-tuning"] == 2e-3
    rows[5] = Row(tried[5], error="no, either")
    with pytest.raises(UniAdapterError, match="full fine-tuning.*: no"):
        choose_rates(rows)


def test_the_table_says_what_the_rows_say():
    rates = {"linear probe": 1e-2, "UniAdapter": 5e-3, "full fine-tuning": 1e-3}
    runs = table_runs("picture questions", five_tasks.DEFAULTS, SEEDS, rates)
    assert {run.split for run in runs} == {"test"}
    assert [run.method for run in runs] == ["frozen", *(method for method in METHODS[1:] for _ in SEEDS)]
    scores = [0.1, 0.2, 0.2, 0.2, 0.5, 0.6, 0.7, 0.9, 0.9, 0.9]
    rows = [
        Row(run, AnsweringMetrics(score, 9, {}), 50, 1.5, seconds_per_step=2.0, peak_mb=900.0)
        for run, score in zip(runs, scores)
    ]
    cell = next(cell for cell in cells(rows) if cell["method"] == "UniAdapter")
    assert cell["score"] == pytest.approx(0.6) and cell["score_std"] == pytest.approx(0.1)
    assert cell["recovered"] == pytest.approx(0.625) and cell["n"] == 3 and cell["learning_rate"] == 5e-3
    line = next(line for line in table(rows).splitlines() if "UniAdapter" in line)
    assert line.split() == "image questions UniAdapter right answers 60.0 ± 10.0 62.5 ± 12.5 50 1.50 2.00 900 3".split()
    rows[4] = Row(runs[4], error="no")
    assert "1 failed" in table(rows)


def test_one_adapter_of_at_most_five_percent_serves_all():
    runs = [base_run(world, "UniAdapter", five_tasks.DEFAULTS) for world in TASKS]
    assert len({run.config for run in runs}) == 1
    percents = [trainable_parameters(grid.prepare(run)).percent for run in runs]
    assert max(percents) <= 5 and max(percents) > 4.5  # of the smallest of the backbones
    sizes = {JOBS[world].backbone: load_backbone(task=JOBS[world].backbone).num_parameters() for world in TASKS}
    assert set(sizes) == {"retrieval", "answering", "captioning"}


def test_a_folder_without_a_finished_task(tmp_path, capsys):
    assert main(["tasks", "--folder", str(tmp_path), "--show"]) == 2
    assert "holds no finished task" in capsys.readouterr().err


def test_the_shipped_card_holds_the_tables_of_its_rows():
    card, rows = (
        (data_path(five_tasks.SHIPPED) / "README.md").read_text(),
        five_tasks.read(data_path(five_tasks.SHIPPED)),
    )
    assert grid.with_tables(card, five_tasks.tables(data_path(five_tasks.SHIPPED))) == card
    assert {row.run.world for row in rows} == set(TASKS) and not any(row.error for row in rows)
