"""What the demo shows: a progress bar, one table, and one picture of the training curves."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from polyloss.demo.training import Outcome

__all__ = ["check_picture", "progress", "save_picture", "show"]

WIDTH = 110  # of the output, where no terminal says how wide it is
COLUMNS = 3

# Lines that coincide stay visible when each is thinner than the one beneath it.
LINES: Sequence[Mapping[str, object]] = (
    {"color": "#9ecae1", "linewidth": 6.0, "linestyle": "-"},
    {"color": "#d95f02", "linewidth": 2.6, "linestyle": "-"},
    {"color": "#1b1b1b", "linewidth": 1.4, "linestyle": "--"},
    {"color": "#7a0177", "linewidth": 1.4, "linestyle": ":"},
)


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH)


@contextmanager
def progress(epochs: int) -> Iterator[Callable[[str], None]]:
    """A progress bar over so many epochs; it yields what to call after each, with a description of the work."""
    columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"), TimeElapsedColumn()
    with Progress(*columns, console=_console(), transient=True) as bar:
        task = bar.add_task("", total=epochs)
        yield lambda description: bar.update(task, advance=1, description=description)


def show(outcomes: Sequence[Sequence[Outcome]], left_out: Mapping[str, str]) -> None:
    """Prints the table, a section for each task, and why some libraries are not in it.

    What a section has in common stands in its first column, so that the table fits a terminal of 80 columns.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
        title="polyloss demo: one training loop in every array library",
        caption="Difference: the largest of a final parameter. Time includes compiling.",
    )
    table.add_column("task\nloss function\nheld-out metric", overflow="fold")
    table.add_column("\n\nlibrary")
    for heading in (
        "training loss\nbefore\n-> after",
        "metric\nbefore\n-> after",
        "\ntime\nin s",
        "differ-\nence to\nNumPy",
    ):
        table.add_column(heading, justify="right")
    for section in outcomes:
        task = section[0].task
        labels = task.name, f" {task.loss}", f" {task.metric}"
        for label, outcome in itertools.zip_longest(labels, section):
            if outcome is None:
                table.add_row(label)
                continue
            table.add_row(
                label,
                outcome.library,
                "{:.3f} -> {:.3f}".format(*outcome.losses),
                "{:.3f} -> {:.3f}".format(*outcome.scores),
                f"{outcome.seconds:.2f}",
                "-" if outcome is section[0] else f"{outcome.difference:.1e}",
            )
        table.add_section()
    console = _console()
    console.print(table)
    for name, problem in left_out.items():
        console.print(f"{name}: not run: {problem}", markup=False, highlight=False)


def check_picture(path: Path) -> None:
    """Raises `ValueError` where `save_picture` could not write, or would replace something else than a picture."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"saves a PNG picture, whose name must end in .png, got {path}")
    try:
        new = not path.exists()
        if path.is_symlink() or not (new or path.is_file()):
            raise ValueError(f"cannot write the picture {path}: it exists and is not a regular file")
        with path.open("ab"):  # changes no byte of an older picture
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise ValueError(f"cannot write the picture {path}: {error.strerror}") from None


def save_picture(outcomes: Sequence[Sequence[Outcome]], path: Path) -> None:
    """A panel for each task with a line for each library."""
    rows = -(-len(outcomes) // COLUMNS)
    layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
    figure = Figure(figsize=(4.2 * COLUMNS, 3.5 * rows + 1), layout=layout)
    figure.suptitle("polyloss demo: training curves, a line for each array library", fontsize="x-large")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for panel, section in zip(panels, outcomes, strict=False):
        for outcome, line in zip(section, itertools.cycle(LINES), strict=False):
            panel.plot(range(1, len(outcome.curve) + 1), outcome.curve, label=outcome.library, **line)
        task, scores = section[0].task, section[0].scores
        panel.set_title(f"{task.name}, {task.loss}", fontsize="medium", fontweight="bold", pad=22)
        panel.text(
            0.5,
            1.03,
            "held-out {}: {:.3f} -> {:.3f}".format(task.metric, *scores),
            fontsize="small",
            ha="center",
            transform=panel.transAxes,
        )
        panel.set_xlabel("epoch")
        panel.set_ylabel("training loss")
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[len(outcomes) :]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.savefig(path, dpi=150, format="png")
