"""`defection models`: what can be named in place of a model."""

from __future__ import annotations

from . import options
from .printing import print_result


def models(as_json: options.AsJson = False) -> None:
    """List the models that can be named: which are already here, their size and licence.

    Example: defection models
    """
    from ...activations.models.embedded import EMBEDDED, embedded_path, is_here

    rows = [
        {
            "name": model.name,
            "about": model.about,
            "download_bytes": model.download_bytes,
            "licence": model.licence,
            "path": str(embedded_path(model)) if is_here(model) else None,
        }
        for model in EMBEDDED.values()
    ]
    lines = [
        f"{r['name']}: {r['about']}; {r['download_bytes'] / 1e6:.0f} MB to fetch, {r['licence']}; "  # type: ignore[operator]
        + (f"here: {r['path']}" if r["path"] else "not fetched yet")
        for r in rows
    ]
    print_result({"models": rows}, as_json, *lines, "Any local directory or Hugging Face id works too.")
