"""What the report pages have in common: a template, numbers as they are written, figures inside the page."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import write_text


def write_page(path: Path, template: str, **values: object) -> Path:
    """Write a page from one of the package's templates, about the results in its folder; give its path.

    Raises DefectionError when the page shows something that these results do not hold.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"rate": _percent, "figure": figure, "p": _p_value}
    with results_of(path.parent):
        page = environment.get_template(template).render(values)
    write_text(path, page)
    return path


@contextlib.contextmanager
def results_of(source: Path) -> Iterator[None]:
    """DefectionError where what is asked of the results in `source` is not in them, or is another kind of value."""
    import jinja2

    try:
        yield
    except DefectionError:
        raise
    except (jinja2.TemplateError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DefectionError(
            f"{source} was written by another version of this toolkit, or changed since, and its results cannot be "
            f"shown ({reason}); measure again, into a new directory"
        ) from error


def _template(name: str) -> str:
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


def figure(value: float | None, how: str = ".3f") -> str:
    """A number as `format` writes it; a dash where there is none."""
    return "–" if value is None else format(value, how)


def in_interval(value: float | None, low: float, high: float, how: str = ".3f") -> str:
    """A number and its interval; a dash where there is none."""
    return "–" if value is None else f"{value:{how}} ({low:{how}}–{high:{how}})"


def _percent(value: float | None) -> str:
    return figure(value, ".1%")


def _p_value(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value >= 0.001 else "< 0.001"


def inline_svg(path: Path) -> str:
    """The figure as an element of a page that may hold others, as wide as its place but no wider than drawn.

    Raises DefectionError when it was not drawn.
    """
    if not path.exists():
        raise DefectionError(f"{path} does not exist; run `defection plot {path.parent.parent}` first")
    text = path.read_text(encoding="utf-8")
    svg = text[text.index("<svg") :]
    # Ids are local to a file, but several files share the page.
    prefix = path.stem
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{prefix}-\2"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'(<svg [^>]*?)height="[^"]+"', r"\1", svg, count=1)
    # Never larger than drawn: the letters of all figures are then of one size.
    return re.sub(r'<svg ([^>]*?)width="([^"]+)"', r'<svg \1style="max-width: \2"', svg, count=1)
