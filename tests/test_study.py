"""The study: a grid that stops, goes on and survives failures; a table that is right; parts that compare what they say."""

import json
import os
import re
import signal
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from transformers import BertTokenizer, BlipImageProcessorPil, BlipProcessor

from uniadapter_edu import data_path, grid, quickstart, study
from uniadapter_edu.__main__ import main
from uniadapter_edu.accounting import trainable_parameters
from uniadapter_edu.config import UniAdapterConfig
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.grid import Row, Run, recovered, run_grid, summary, table
from uniadapter_edu.metrics import RetrievalMetrics
from uniadapter_edu.momentum import MomentumConfig
from uniadapter_edu.quickstart import Settings
from uniadapter_edu.training import train

WORDS = "cat dog owl fox bee ant cow pig red blue".split()
SMALL = Settings(scenes=8, gallery=6, steps=3, batch_size=4, top_k=2)
ADAPTERS = UniAdapterConfig(bottleneck=4, scale=1.0)
RUNS = [
    Run("nothing", "frozen", settings=SMALL),
    Run("heads", "linear probe", learning_rate=1e-3, settings=SMALL),
    Run("ours", config=ADAPTERS, learning_rate=1e-3, settings=SMALL),
    Run("slow", config=ADAPTERS, learning_rate=1e-3, settings=SMALL, momentum=MomentumConfig(queue=6)),
    Run("theirs", "LoRA", rank=2, learning_rate=1e-3, settings=SMALL),
    Run("clips", config=replace(ADAPTERS, frame_aware=True), learning_rate=1e-3, settings=SMALL, world="clips"),
    Run("all", "full fine-tuning", learning_rate=1e-3, settings=SMALL),
]


def toy_world(column):
    """(world, split, size, style) -> noise with two captions each: pictures, or clips of two frames."""

    def load(world, split, size, style):
        rng = np.random.default_rng([len(split), len(style)])
        rows = []
        for i in range(size):
            frames = [Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)) for _ in range(2)]
            captions = [f"{WORDS[i % 8]} {word}" for word in WORDS[8:]]
            rows.append({"image": frames[0], "frames": frames, "captions": captions})
        return [{name: row[name] for name in (column, "captions")} for row in rows]

    return load


@pytest.fixture
def tiny(monkeypatch, make_blip):
    """Everything at toy size: backbone, processor and worlds."""
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    tokenizer = BertTokenizer(vocab=vocab, model_max_length=16)
    processor = BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer)
    for module in (grid, study, quickstart):
        monkeypatch.setattr(module, "load_backbone", make_blip)
    monkeypatch.setattr(grid, "load_processor", lambda: processor)
    monkeypatch.setattr(grid, "WORLDS", {"pictures": toy_world("image"), "clips": toy_world("frames")})


def go(runs, folder, **options):
    return run_grid(runs, folder, progress=False, **options)


def timeless(rows):
    return [replace(row, seconds_per_step=None, peak_mb=None) for row in rows]


# ---- the grid


def test_every_kind_of_run_gives_its_row(tiny, tmp_path, make_blip):
    rows = {row.run.line: row for row in go(RUNS, tmp_path)}
    assert list(rows) == [run.line for run in RUNS] and not any(row.error for row in rows.values())
    heads = sum(
        p.numel() for name in ("vision_proj", "text_proj", "itm_head") for p in getattr(make_blip(), name).parameters()
    )
    backbone = sum(p.numel() for p in make_blip().parameters())
    assert rows["nothing"].trainable == 0 and rows["heads"].trainable == heads
    assert rows["ours"].trainable == trainable_parameters(grid.prepare(RUNS[2])).trainable == rows["slow"].trainable
    assert heads < rows["theirs"].trainable < rows["all"].trainable == backbone
    assert rows["all"].percent == 100 and rows["all"].metrics.images == 6 and rows["all"].metrics.captions == 12
    assert rows["nothing"].loss is None and all(row.loss > 0 for line, row in rows.items() if line != "nothing")
    assert rows["ours"].loss != rows["slow"].loss  # momentum was at work
    assert not list((tmp_path / "checkpoints").iterdir())


def test_rows_survive_json(tiny, tmp_path):
    for row in go(RUNS[2:4], tmp_path):
        assert Row.from_dict(json.loads(json.dumps(row.to_dict()))) == row


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_an_interrupted_grid_goes_on_and_ends_with_the_same_rows(tiny, tmp_path, monkeypatch):
    runs = RUNS[1:4]
    expected, trained = go(runs, tmp_path / "straight"), []

    def press(history):
        trained.append(len(history.rows))
        if len(trained) == 5:  # in the second run, after its second step
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(grid, "train", lambda *args, **options: train(*args, **options, stop=press))
    with pytest.raises(KeyboardInterrupt):
        go(runs, tmp_path / "stopped")
    assert len(list((tmp_path / "stopped" / "rows").iterdir())) == 1
    assert timeless(go(runs, tmp_path / "stopped")) == timeless(expected)
    assert trained == [1, 2, 3, 1, 2, 3, 1, 2, 3], "a step was repeated or left out"


def test_a_finished_run_is_read_under_whatever_name(tiny, tmp_path, monkeypatch):
    first = go(RUNS[2:3], tmp_path)[0]
    monkeypatch.setattr(grid, "execute", lambda run, folder: pytest.fail("it ran again"))
    again = go([replace(RUNS[2], line="renamed", budget=5.0)], tmp_path)[0]
    assert again.run.line == "renamed" and replace(again, run=first.run) == first


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 2e-3},
        {"split": "val"},
        {"config": replace(ADAPTERS, share="none")},
        {"momentum": MomentumConfig()},
        {"settings": replace(SMALL, seed=1)},
        {"world": "clips"},
    ],
    ids=str,
)
def test_whatever_changes_the_numbers_is_another_run(change):
    assert replace(RUNS[2], **change).key("a") != RUNS[2].key("a") != RUNS[2].key("b")


def test_rows_of_another_backbone_do_not_count(tiny, tmp_path, monkeypatch, make_blip):
    before = go(RUNS[:1], tmp_path)
    for module in (grid, quickstart):
        monkeypatch.setattr(module, "load_backbone", lambda **task: make_blip(seed=1, **task))
    go(RUNS[:1], tmp_path)
    assert len(list((tmp_path / "rows").iterdir())) == 2 and before[0].error is None


def test_a_failing_run_is_recorded_and_tried_again(tiny, tmp_path, monkeypatch):
    prepare = grid.prepare

    def broken(run):
        if run.line == "ours":
            raise MemoryError("too much")
        return prepare(run)

    monkeypatch.setattr(grid, "prepare", broken)
    runs = [RUNS[2], RUNS[1]]
    rows = go(runs, tmp_path)
    assert rows[0].error == "MemoryError: too much" and rows[0].metrics is None and rows[1].error is None
    with pytest.raises(MemoryError):
        go(runs, tmp_path, stop_on_error=True)
    monkeypatch.setattr(grid, "prepare", prepare)
    assert [row.error for row in go(runs, tmp_path)] == [None, None]


def test_what_cannot_run_says_so_in_its_row(tiny, tmp_path):
    row = go([replace(RUNS[3], world="clips")], tmp_path)[0]
    assert "momentum encoders are for pictures" in row.error


def test_a_file_that_is_no_row_is_named(tiny, tmp_path):
    go(RUNS[:1], tmp_path)
    path = next((tmp_path / "rows").iterdir())
    path.write_text('{"run": 1}')
    with pytest.raises(UniAdapterError, match=path.name):
        go(RUNS[:1], tmp_path)


# ---- the table


def made_up(line, r1, seed=0, method="UniAdapter", error=None, i2t=0.5, **fields):
    metrics = None if error else RetrievalMetrics(r1, 0.9, 1.0, 1.0, i2t, 0.9, 1.0, 1.0, 10, 30)
    run = Run(line, method, settings=replace(SMALL, seed=seed, style=fields.pop("style", "twemoji")), **fields)
    return Row(run, metrics, 1000, 5.0, error=error)


REFERENCES = [
    made_up("frozen", 0.2, method="frozen"),
    made_up("full fine-tuning", 0.55, method="full fine-tuning"),
    made_up("full fine-tuning", 0.65, seed=1, method="full fine-tuning"),
]


def test_recovered_is_the_share_of_the_gain():
    row = made_up("ours", 0.5)
    assert recovered(row, [row, *REFERENCES]) == pytest.approx((0.5 - 0.2) / (0.6 - 0.2))
    assert recovered(REFERENCES[0], REFERENCES) == 0
    assert recovered(row, [row, *REFERENCES[:1]]) is None  # nothing to compare with
    assert recovered(made_up("ours", 0.5, style="fluent-line"), REFERENCES) is None
    assert recovered(made_up("ours", 0.5, split="val"), REFERENCES) is None
    assert recovered(made_up("ours", 0.0, error="no"), REFERENCES) is None


def test_the_summary_has_mean_spread_and_number_of_each_cell():
    rows = [*REFERENCES, *(made_up("ours", r1, seed, budget=5) for seed, r1 in enumerate((0.4, 0.5, 0.3)))]
    rows += [
        made_up("ours", 0.9, budget=8),
        made_up("ours", 0.0, 1, budget=8, error="no"),
        made_up("bad", 0, error="no"),
    ]
    cells = {(cell["line"], cell["budget"]): cell for cell in summary(rows)}
    ours, single, bad = cells["ours", 5], cells["ours", 8], cells["bad", None]
    assert (ours["n"], ours["failed"], ours["trainable"], ours["percent"]) == (3, 0, 1000, 5.0)
    assert ours["t2i_r1"] == pytest.approx(0.4) and ours["t2i_r1_std"] == pytest.approx(0.1)
    assert ours["recovered"] == pytest.approx(0.5) and ours["recovered_std"] == pytest.approx(0.25)
    assert (single["n"], single["failed"], single["t2i_r1_std"]) == (1, 1, None)
    assert (bad["n"], bad["failed"], bad["t2i_r1"], bad["trainable"]) == (0, 1, None, None)
    text = table(rows).splitlines()
    assert text[4].split() == "ours twemoji pictures 4 3 1,000 5.00 40.0 ± 10.0 50.0 ± 0.0 50.0 ± 25.0 3".split()
    assert text[-1].split() == "bad twemoji pictures 4 3 0, 1 failed".split()


def test_differences_are_taken_seed_by_seed():
    rows = [made_up("ours", r1, seed) for seed, r1 in enumerate((0.4, 0.5, 0.3))]
    rows += [made_up("theirs", r1, seed) for seed, r1 in ((2, 0.1), (0, 0.3))] + [made_up("theirs", 0, 1, error="no")]
    assert grid.differences(rows, "ours") == {"theirs": [pytest.approx(-0.2), pytest.approx(-0.1)]}
    assert grid.differences(rows, "theirs", "i2t_r1") == {"ours": [0, 0]}


# ---- the parts


def test_the_best_learning_rate_of_each_line_is_chosen():
    tried = {("a", 1e-3): (0.3, 0.3), ("a", 3e-3): (0.4, 0.4), ("a", 1e-2): (0.5, 0.1), ("b", 1e-3): (0.2, 0.2)}
    rows = [made_up(line, r1, learning_rate=rate, i2t=i2t) for (line, rate), (r1, i2t) in tried.items()]
    rows.insert(0, made_up("b", 0.0, learning_rate=1.0, error="diverged"))
    rows.append(made_up("a", 0.0, learning_rate=1.0, error="diverged"))
    assert study.choose_rates(rows) == {"a": 3e-3, "b": 1e-3}
    with pytest.raises(UniAdapterError, match="for c: diverged"):
        study.choose_rates([*rows, made_up("c", 0.0, error="diverged")])


@pytest.mark.parametrize("line", study.LINES)
def test_a_line_is_as_large_as_its_budget(line):
    for percent in (2.2, study.MIDDLE):
        ledger = trainable_parameters(grid.prepare(study.sized(line, percent, Settings())))
        assert ledger.percent == pytest.approx(percent, abs=0.1), ledger  # a rank of LoRA is 0.18 %


@pytest.fixture
def pretended(tiny, monkeypatch):
    """Runs that need no training: the score falls with the learning rate's distance from 2.2e-3, LoRA's from infinity."""
    executed = []

    def execute(run, folder):
        executed.append(run)
        if run.line == "LoRA" and run.budget == 15 and run.settings.seed:
            raise ValueError("made to fail")
        rate = run.learning_rate or 0.05
        distance = 0.1 - rate if run.method == "LoRA" else abs(rate - 2.2e-3)
        metrics = made_up(run.line, {"frozen": 0.1, "full fine-tuning": 0.9}.get(run.method, 0.6) - distance).metrics
        return Row(
            run, replace(metrics, t2i_r1=metrics.t2i_r1 - 0.01 * run.settings.seed), 1000, run.budget or 5.0, 1.0
        )

    monkeypatch.setattr(grid, "execute", execute)
    return executed


def test_the_chosen_rates_are_used_in_every_part(pretended, tmp_path):
    tables = study.study(tmp_path, seeds=(0, 1), settings=SMALL, progress=False)
    assert tuple(tables) == study.ALL_PARTS
    lr = [row.run for row in tables["lr"]]
    assert {run.settings.seed for run in lr} == {0} and {run.split for run in lr} == {"val"}
    assert {run.line for run in lr} == {*study.LINES, "linear probe", "full fine-tuning"}
    rest = [row.run for part in study.PARTS for row in tables[part]]
    assert {run.split for run in rest} == {"test"}
    tried = {run.learning_rate for run in lr if run.method == "full fine-tuning"}
    assert tried == {5e-4, 1e-3, 2e-3, 6e-3}  # 2e-3, the best and first the largest, is then between others
    chosen = {"frozen": None, "linear probe": 3e-3, "LoRA": 0.1}
    wide = [row.run for row in tables["wide"] if row.run.budget]
    usual = [run for run in rest if run.settings.batch_size == SMALL.batch_size and run not in wide]
    assert usual and all(run.learning_rate == chosen.get(run.method, 2e-3) for run in usual)
    assert {(run.line, run.budget) for run in wide} == {(line, study.BUDGETS[-1]) for line in study.LINES}
    assert all(run.learning_rate == study.WIDE_RATE * chosen.get(run.method, 2e-3) for run in wide)
    assert json.loads((tmp_path / "curve.json").read_text())["learning_rates"]["full fine-tuning"] == 2e-3
    assert len(pretended) == len({run.key("") for run in lr + rest}), "a run that two parts share ran twice"

    failed = sum(row.error is not None for row in tables["curve"])
    count = len(pretended) + failed
    study.study(tmp_path, ("curve",), seeds=(0, 1), settings=SMALL, progress=False)
    assert len(pretended) == count and failed == 1  # only what had failed ran again

    names = {"curve", "main", "ablation", "momentum", "video", "steps"}
    assert {path.stem for path in study.draw(tmp_path)} == names
    for name in names:
        assert len(Image.open(tmp_path / f"{name}.png").convert("RGB").getcolors(1 << 20)) > 20, "the figure is blank"


def test_the_curve_has_every_line_at_every_budget_with_every_seed(tiny):
    rates = dict.fromkeys(study.RATES, 1e-3)
    runs = study.curve_runs(SMALL, (0, 1, 2), rates)
    cells = [(run.line, run.budget, run.settings.seed) for run in runs if run.budget]
    assert sorted(cells) == sorted((line, p, s) for line in study.LINES for p in study.BUDGETS for s in (0, 1, 2))
    assert [run.line for run in runs if not run.budget] == ["frozen", *["linear probe"] * 3, *["full fine-tuning"] * 3]
    assert all(run.settings.style == SMALL.style and run.config != ADAPTERS for run in runs)


def test_ablations_change_one_choice_at_an_equal_bottleneck(tiny):
    runs = study.ablation_runs(SMALL, (0,), dict.fromkeys(study.RATES, 1e-3))
    ours = [run for run in runs if run.line in study.ABLATIONS]
    assert [run.line for run in ours] == list(study.ABLATIONS)
    assert len({run.config.bottleneck for run in ours}) == 1
    default = ours[0].config
    for run in ours:
        changed = {n for n, v in run.config.to_dict().items() if v != default.to_dict()[n]}
        assert changed == set(study.ABLATIONS[run.line])
    assert [run.method for run in runs if run.method in study.REFERENCES] == ["frozen", "full fine-tuning"]


def test_the_main_table_has_both_styles_and_repeats_nothing_of_the_curve(tiny):
    rates = dict.fromkeys(study.RATES, 1e-3)
    runs, curve = study.main_runs(SMALL, (0, 1), rates), study.curve_runs(SMALL, (0, 1), rates)
    for style in ("twemoji", "fluent-line"):
        lines = [run.line for run in runs if run.settings.style == style]
        assert sorted(lines) == sorted(["frozen", *2 * study.MAIN, *2 * study.REFERENCES[1:]])
    assert {run.key("") for run in runs if run.settings.style == "twemoji"} <= {run.key("") for run in curve}


def test_the_learning_rate_shrinks_with_the_root_of_the_batch():
    run = Run("ours", config=ADAPTERS, learning_rate=4e-3, settings=replace(SMALL, batch_size=16))
    assert study.for_its_batch(run).learning_rate == 2e-3
    assert study.for_its_batch(replace(run, settings=study.DEFAULTS)).learning_rate == 4e-3
    assert study.for_its_batch(replace(run, learning_rate=None)).learning_rate is None


def test_each_number_of_steps_has_references_of_its_own(tiny):
    runs = study.steps_runs(replace(SMALL, steps=8), (0, 1), dict.fromkeys(study.RATES, 1e-3))
    cells = sorted((run.settings.steps, run.line) for run in runs if run.settings.seed == 0)
    assert cells == sorted((n, line) for n in (4, 8, 16) for line in ("frozen", "UniAdapter", "full fine-tuning"))


def test_momentum_and_video_compare_with_and_without(tiny):
    rates = dict.fromkeys(study.RATES, 1e-3)
    cells = {
        (run.settings.batch_size, run.momentum and run.momentum.decay)
        for run in study.momentum_runs(SMALL, (0,), rates)
    }
    assert cells == {(batch, decay) for batch in study.MOMENTUM_BATCHES for decay in (None, 0.995, 0.95)}
    clips = [run for run in study.video_runs(SMALL, (0,), rates) if run.config]
    assert {(run.world, run.config.frame_aware) for run in clips} == {
        (world, aware) for world in ("clips", "clips with distractors") for aware in (False, True)
    }
    assert all(world in grid.WORLDS for world in ("pictures", "clips"))


# ---- the command


def test_the_command_runs_says_what_failed_and_draws(pretended, tmp_path, capsys):
    command = ["study", "--folder", str(tmp_path), "--part", "curve"]
    assert main([*command, "--seeds", "0", "1", "--steps", "3", "--scenes", "8"]) == 1  # a run failed
    out = capsys.readouterr().out
    assert "failed: LoRA at 15 %, twemoji pictures, seed 1: ValueError: made to fail" in out
    assert "chosen for LoRA: 0.1, the end of the rates that were tried\n" in out
    assert "chosen for full fine-tuning: 0.002\n" in out
    assert {(run.settings.steps, run.settings.scenes) for run in pretended} == {(3, 8)}
    count = len(pretended)
    assert main([*command, "--draw"]) == 0
    assert [path.name for path in tmp_path.glob("*.png")] == ["curve.png"] and len(pretended) == count


def test_recording_ships_rows_figures_and_tables_and_leaves_the_words_alone(pretended, tmp_path, monkeypatch, capsys):
    folder, data = tmp_path / "runs", tmp_path / "data"
    (data / "study").mkdir(parents=True)
    card = data / "study" / "README.md"
    card.write_text("Before.\n<!-- table curve -->\n```\nold\n```\nAfter.\n<!-- table video -->\n```\nold\n```\n")
    monkeypatch.setattr(study, "data_path", lambda *parts: data.joinpath(*parts))
    study.study(folder, ("curve",), seeds=(0,), settings=SMALL, progress=False)
    capsys.readouterr()
    assert main(["study", "--folder", str(folder), "--draw", "--record"]) == 0
    assert {path.name for path in card.parent.iterdir()} == {"README.md", "lr.json", "curve.json", "curve.png"}
    rows = study.read_study(data / "study")["curve"]
    assert card.read_text() == (
        f"Before.\n<!-- table curve -->\n```\n{table(rows)}\n```\nAfter.\n<!-- table video -->\n```\nold\n```\n"
    )


def test_a_study_goes_on_from_the_shipped_one(pretended, tmp_path, monkeypatch, make_blip):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    monkeypatch.setattr(study, "data_path", lambda *parts: data.joinpath(*parts))
    study.study(data / "study", ("curve",), seeds=(0,), settings=SMALL, progress=False)
    ran = len(pretended)
    assert study.begin_from_shipped(elsewhere) == ran and study.begin_from_shipped(elsewhere) == 0
    tables = study.study(elsewhere, ("curve",), seeds=(0,), settings=SMALL, progress=False)
    assert len(pretended) == ran and tables == study.read_study(data / "study")
    for module in (grid, study):  # with another backbone, nothing of it counts
        monkeypatch.setattr(module, "load_backbone", lambda **task: make_blip(seed=1, **task))
    study.study(elsewhere, ("curve",), seeds=(0,), settings=SMALL, progress=False)
    assert len(pretended) == 2 * ran


def test_the_shipped_studys_card_holds_the_tables_of_its_rows():
    card = (data_path("study") / "README.md").read_text()
    tables = study.read_study(data_path("study"))
    assert grid.with_tables(card, {part: table(rows) for part, rows in tables.items()}) == card
    assert set(re.findall(r"<!-- table (\w+) -->", card)) == set(tables)
    assert not any(row.error for rows in tables.values() for row in rows)


def test_rows_that_give_nothing_to_draw_give_no_figure():
    nobody_knows_the_gain = [made_up("UniAdapter", 0.5, budget=5), REFERENCES[0]]
    assert study.figure_of("curve", nobody_knows_the_gain) is None
    assert study.figure_of("curve", [*nobody_knows_the_gain, *REFERENCES[1:]]) is not None
    assert study.figure_of("ablation", REFERENCES) is None and study.figure_of("steps", REFERENCES[:1]) is None
    assert (
        study.figure_of("video", [made_up("ours", 0, error="no")]) is None and study.figure_of("lr", REFERENCES) is None
    )


def test_nothing_to_draw_is_said(tmp_path, capsys):
    assert main(["study", "--folder", str(tmp_path), "--draw"]) == 2
    assert "holds no part of a study" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["study", "--part", "magic"])
