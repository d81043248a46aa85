"""`defection plot`: the pictures of results that are already on disk."""

from __future__ import annotations

from pathlib import Path

from . import options
from .printing import print_result


def plot(folder: options.Results, as_json: options.AsJson = False) -> None:
    """Draw the pictures of a demo, sweep or study from its tables, under figures/.

    Example: defection plot runs/demo
    """
    files = [str(path) for path in draw(folder)]
    print_result({"figures": files}, as_json, *files)


def draw(folder: Path, *, again: bool = True) -> list[Path]:
    """Draw the figures of whatever lies in `folder`, those that lie there only if `again`; give the files."""
    from ..run.pages import results_of

    with results_of(folder):
        if is_study(folder):
            from ..study.figures import save_study_figures

            return save_study_figures(folder, again=again)
        if not again and (folder / "figures").exists():
            return sorted((folder / "figures").iterdir())
        from ..run.evaluation import plot_folder

        return plot_folder(folder)


def is_study(folder: Path) -> bool:
    """Whether `folder` holds the results of a study, and not those of one organism."""
    return (folder / "summary.json").exists()
