"""The command ``polyloss``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from polyloss.version import __version__

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with these arguments (default: the process's own) and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="polyloss", description="Losses that are right, fast and the same in every array library."
    )
    parser.add_argument("--version", action="version", version=f"polyloss {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train six small models on real data in every installed array library")
    demo.add_argument(
        "--library", action="append", metavar="NAME", help="only this array library; may be repeated (default: all)"
    )
    demo.add_argument(
        "--picture",
        default="polyloss-demo.png",
        metavar="FILE",
        help="where the curves are saved (default: %(default)s)",
    )
    commands.add_parser("backends", help="which array libraries and devices are here, and which path a call takes")

    conformance = commands.add_parser("conformance", help="check that every backend gives the right numbers")
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["conformance"]:  # which needs packages of its own
        try:
            from polyloss.conformance import command
        except ModuleNotFoundError as error:
            print(
                f"polyloss conformance needs {error.name}: pip install 'array-polyloss[conformance]'", file=sys.stderr
            )
            return 2
        command.add_arguments(conformance)

    options = parser.parse_args(arguments)
    if options.command == "conformance":
        return command.run(options)
    if options.command == "backends":
        from polyloss.environment import report

        print(report())
        return 0
    from polyloss.demo import run

    return run(options.library, options.picture)


if __name__ == "__main__":
    sys.exit(main())
