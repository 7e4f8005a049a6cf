"""``python -m benchmarks``: the speed and the memory of polyloss beside its peers. README.md says how."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.options import Options, parse
from benchmarks.process import prepare


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where an output of polyloss is wrong, 2 where the command is not understood."""
    options = parse(arguments)
    try:
        from benchmarks import session
    except ModuleNotFoundError as error:
        print(f'python -m benchmarks needs {error.name}: pip install -e ".[demo]"', file=sys.stderr)
        return 2
    return session.run(options)


def _start() -> int:
    options: Options = parse()
    prepare(options.threads)  # before anything imports NumPy
    return main()


if __name__ == "__main__":
    sys.exit(_start())
