"""`polyloss demo`: six small models of real data, trained by one loop in every array library that is installed.

``tasks`` holds the data and the models, ``training`` the loop and the table of array libraries, ``report`` the output.
They need the extra ``demo`` (scikit-learn, rich, matplotlib); importing this package does not.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["run"]

EXTRA = ("sklearn", "rich", "matplotlib")


def run(
    libraries: Sequence[str] | None = None, picture: str | os.PathLike[str] = "polyloss-demo.png", quick: bool = False
) -> int:
    """Trains every task in every library, prints a table of the outcomes and saves a picture of the training curves.

    Parameters
    ----------
    libraries
        Names of the array libraries to run in. NumPy always runs, since the others are compared with it. Default: every
        library that is installed and has a device to compute on.
    picture
        Where to save the picture, a path that ends in ``.png``. An older picture there is replaced.
    quick
        Whether to train for an eighth of the time only.

    Returns
    -------
    int
        The exit status: 0, or 1 after a message to the standard error.
    """
    try:
        for name in EXTRA:
            importlib.import_module(name)
    except ModuleNotFoundError:
        return _refuse('needs the extra: pip install "array-polyloss[demo]"')
    from polyloss.demo import report, tasks, training

    path = Path(picture)
    try:
        names, left_out = training.choose(libraries)
        report.check_picture(path)
    except ValueError as error:
        return _refuse(str(error))
    every = tasks.all_tasks(quick)
    with report.progress(len(names) * sum(task.epochs for task in every)) as advance:
        outcomes = [training.compare(task, names, advance) for task in every]
    report.show(outcomes, left_out)
    try:
        report.save_picture(outcomes, path)
    except OSError as error:
        return _refuse(f"cannot write the picture {path}: {error.strerror}")
    print(f"training curves: {path}")
    return 0


def _refuse(message: str) -> int:
    print(f"polyloss demo {message}", file=sys.stderr)
    return 1
