"""`python -m uniadapter_edu quickstart`, `study`, `tasks`, `adapt` and `paper`"""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path

from uniadapter_edu import five_tasks, study, together
from uniadapter_edu import quickstart as job
from uniadapter_edu.adaptation import adapt, adapt_benchmark, default_config
from uniadapter_edu.backbones import TASKS
from uniadapter_edu.errors import UniAdapterError
from uniadapter_edu.training import TrainConfig
from uniadapter_edu.worlds.benchmarks import BENCHMARKS, FRAMES

QUICKSTART = job.Settings()
STUDY_SIZES = ("scenes", "gallery", "steps", "batch_size")  # what of quickstart's settings the study lets you change
TASK_SIZES = ("gallery", "steps")
TRAINING = (
    "epochs",
    "batch_size",
    "learning_rate",
    "precision",
    "accumulate",
    "gradient_checkpointing",
    "workers",
    "unreadable",
)  # what of TrainConfig a command line lets you change


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0, 1 if runs of a study failed, 2 for bad input, 130 if interrupted."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except UniAdapterError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'Interrupted'}. The same command goes on from here.", file=sys.stderr)
        return 130


def _quickstart(options: argparse.Namespace) -> int:
    methods = tuple(m for m in job.METHODS if job.slug(m) in options.methods or "all" in options.methods)
    settings = job.Settings(**{field.name: getattr(options, field.name) for field in fields(job.Settings)})
    job.quickstart(options.output, methods, settings, options.fresh, options.record)
    return 0


def _study(options: argparse.Namespace) -> int:
    parts = study.ALL_PARTS if "all" in options.part else tuple(options.part)
    if options.draw:
        print("\nFigures:", ", ".join(map(str, figures := study.draw(options.folder, parts))))
        if options.record:
            _say_recorded(study.record(options.folder, figures))
        return 0
    settings = replace(study.DEFAULTS, **{name: getattr(options, name) for name in STUDY_SIZES})
    if options.from_shipped:
        print(f"{study.begin_from_shipped(options.folder)} finished runs of the shipped study are taken over.")
    tables = study.study(options.folder, parts, options.seeds, settings)
    return int(any(row.error for rows in tables.values() for row in rows))


def _say_recorded(card: Path) -> None:
    print(f"Recorded in {card.parent}; run `python -m uniadapter_edu._files data` before committing it.")


def _tasks(options: argparse.Namespace) -> int:
    worlds = five_tasks.TASKS if "all" in options.task else [w for w in five_tasks.TASKS if job.slug(w) in options.task]
    if options.show:
        print(five_tasks.table([row for row in five_tasks.read(options.folder) if row.run.world in worlds]))
        print("\nFigure:", five_tasks.draw(options.folder))
        if options.record:
            _say_recorded(five_tasks.record(options.folder))
        return 0
    settings = replace(five_tasks.DEFAULTS, **{name: getattr(options, name) for name in TASK_SIZES})
    rows = five_tasks.five_tasks(options.folder, worlds, options.seeds, settings)
    return int(any(row.error for row in rows))


def _adapt(options: argparse.Namespace) -> int:
    adapt(options.pictures, options.table, options.output, task=options.task, **_how(options))
    print(f"Adapters: {options.output}")
    return 0


def _paper(options: argparse.Namespace) -> int:
    if options.name is None:
        print("\n\n".join(f"{name}: {benchmark}" for name, benchmark in BENCHMARKS.items()))
        return 0
    where = {name: getattr(options, name) for name in ("source", "pictures", "size", "frames", "missing")}
    output = options.output or Path("runs/paper") / options.name
    scores = adapt_benchmark(options.name, output, **where, **_how(options))
    if together.rank() == 0:
        print(f"\n{scores}\nAdapters and scores: {output}")
    return 0


def _how(options: argparse.Namespace) -> dict:
    """What a command line says of the backbone, the adapters and the training."""
    config, given = default_config(options.backbone), {"bottleneck": options.bottleneck, "scale": options.scale}
    config = replace(config, **{name: value for name, value in given.items() if value is not None})
    training = TrainConfig(**{name: getattr(options, name) for name in TRAINING})
    return {"backbone": options.backbone, "config": config, "train_config": training}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m uniadapter_edu", description="UniAdapter, to learn, use and teach."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_quickstart(commands)
    _add_study(commands)
    _add_tasks(commands)
    _add_adapt(commands)
    _add_paper(commands)
    return parser


def _add_quickstart(commands) -> None:
    quick = commands.add_parser(
        "quickstart",
        help="adapt the embedded BLIP to a new world, beside the alternatives",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    quick.set_defaults(command=_quickstart)
    quick.add_argument(
        "--output", type=Path, default=Path("runs/quickstart"), help="folder for adapters, figures, results"
    )
    quick.add_argument(
        "--methods",
        nargs="+",
        default=[job.slug(m) for m in job.RUN_BY_DEFAULT],
        choices=[*map(job.slug, job.METHODS), "all"],
        help="what to run here",
    )
    quick.add_argument(
        "--fresh", action="store_true", help="begin anew instead of going on where a run was interrupted"
    )
    quick.add_argument(
        "--record", action="store_true", help="make these runs the saved ones that ship with the package"
    )
    _add_settings(quick, [field.name for field in fields(job.Settings)])


def _add_study(commands) -> None:
    parser = commands.add_parser(
        "study",
        help="compare methods at equal budgets, and what each choice of UniAdapter does: hours, and can be interrupted",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(command=_study)
    parser.add_argument("--folder", type=Path, default=Path("runs/study"), help="for rows, checkpoints and figures")
    parser.add_argument(
        "--part",
        nargs="+",
        default=["all"],
        choices=[*study.ALL_PARTS, "all"],
        help="what to run or draw; lr, where learning rates are chosen, always comes first",
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(study.SEEDS), help="the first one chooses learning rates"
    )
    parser.add_argument(
        "--draw", action="store_true", help="run nothing; print tables and draw figures of what is there"
    )
    parser.add_argument(
        "--from-shipped", action="store_true", help="run only what the study that ships with the package has not run"
    )
    parser.add_argument(
        "--record", action="store_true", help="with --draw: make this study the one that ships with the package"
    )
    _add_settings(parser, STUDY_SIZES, study.DEFAULTS)


def _add_tasks(commands) -> None:
    parser = commands.add_parser(
        "tasks",
        help="one adapter on retrieval, questions and captions, of pictures and clips: hours, and can be interrupted",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(command=_tasks)
    parser.add_argument("--folder", type=Path, default=Path("runs/tasks"), help="for rows and checkpoints")
    parser.add_argument(
        "--task", nargs="+", default=["all"], choices=[*map(job.slug, five_tasks.TASKS), "all"], help="which to run"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=list(five_tasks.SEEDS), help="the first one chooses learning rates"
    )
    parser.add_argument(
        "--show", action="store_true", help="run nothing; print the table and draw a figure of what is there"
    )
    parser.add_argument(
        "--record", action="store_true", help="with --show: make these tasks the ones that ship with the package"
    )
    _add_settings(parser, TASK_SIZES, five_tasks.DEFAULTS)


def _add_adapt(commands) -> None:
    parser = commands.add_parser(
        "adapt",
        help="train adapters on your own pictures and captions or questions",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(command=_adapt)
    parser.add_argument("pictures", type=Path, help="a folder")
    parser.add_argument("table", type=Path, help="CSV: file and caption, or file, question and answer")
    parser.add_argument("--output", type=Path, default=Path("runs/adapt"), help="folder for the adapters")
    parser.add_argument(
        "--task", choices=TASKS, help="answering if the table has questions, else retrieval, unless told"
    )
    _add_how(parser)


def _add_paper(commands) -> None:
    parser = commands.add_parser(
        "paper",
        help="train adapters on one of the paper's seven data sets, and score them by its protocol",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.set_defaults(command=_paper)
    parser.add_argument("name", nargs="?", choices=BENCHMARKS, help="without it, all are described")
    parser.add_argument(
        "--source", help="annotations, or parquet files: a file or a folder, or a hub id; its hub copy unless told"
    )
    parser.add_argument(
        "--pictures", type=Path, help="the folder of pictures or clips, where annotations only name them"
    )
    parser.add_argument("--size", type=int, help="only the first so many pictures, clips or questions of each split")
    parser.add_argument("--frames", type=int, default=FRAMES, help="of each clip")
    parser.add_argument(
        "--missing", choices=["stop", "skip"], default="stop", help="at pictures or clips that are not there"
    )
    parser.add_argument("--output", type=Path, help="folder for adapters and scores; runs/paper/NAME unless told")
    _add_how(parser)


def _add_how(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backbone", help="a folder or a hub id; the embedded one unless told")
    parser.add_argument("--bottleneck", type=int, help="what suits the backbone, unless told")
    parser.add_argument("--scale", type=float, help="what suits the backbone, unless told")
    parser.add_argument(
        "--unreadable", choices=["stop", "skip"], default=TrainConfig.unreadable, help="at damaged pictures"
    )
    for name in TRAINING:
        default = getattr(TrainConfig, name)
        if isinstance(default, bool):
            parser.add_argument(f"--{name.replace('_', '-')}", action="store_true")
        elif name != "unreadable":
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)


def _add_settings(parser: argparse.ArgumentParser, names, defaults: job.Settings = QUICKSTART) -> None:
    for field in fields(job.Settings):
        if field.name in names:
            default = getattr(defaults, field.name)
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=default)


if __name__ == "__main__":
    sys.exit(main())
