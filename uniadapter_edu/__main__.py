"""`python -m uniadapter_edu quickstart`"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from uniadapter_edu import quickstart as job
from uniadapter_edu.errors import UniAdapterError


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit status: 0, 2 for bad input, 130 for an interruption."""
    options = _parser().parse_args(arguments)
    methods = tuple(m for m in job.METHODS if job.slug(m) in options.methods or "all" in options.methods)
    settings = job.Settings(**{field.name: getattr(options, field.name) for field in fields(job.Settings)})
    try:
        job.quickstart(options.output, methods, settings, options.fresh, options.record)
    except UniAdapterError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'Interrupted'}. The same command goes on from here.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m uniadapter_edu", description="UniAdapter, to learn, use and teach."
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    quick = commands.add_parser(
        "quickstart",
        help="adapt the embedded BLIP to a new world, beside the alternatives",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
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
    for field in fields(job.Settings):
        quick.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    return parser


if __name__ == "__main__":
    sys.exit(main())
