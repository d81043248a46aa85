"""`defection store`: what a store holds, whether it is whole, and how to make it whole again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...activations.basics.errors import DefectionError
from ...activations.basics.progress import progress_shown
from ...activations.models.template import DATE
from . import options
from .printing import print_result

if TYPE_CHECKING:
    from ...activations.basics.files import Json

store = typer.Typer(
    help="Show, verify or repair a store that `defection cache` wrote.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
StoreArgument = Annotated[Path, typer.Argument(help="Store directory.", show_default=False)]


@store.command()
def show(path: StoreArgument, as_json: options.AsJson = False) -> None:
    """What the store holds and where it comes from; reads the manifest, not the vectors.

    Example: defection store show runs/store
    """
    from ...activations.stores.store import open_store

    opened = open_store(path)
    head = opened.manifest
    about: Json = {
        "path": str(path),
        "complete": opened.complete,
        "prompts": len(opened),
        "vectors": head.get("n_vectors"),
        "layers": list(opened.layers),
        "site": opened.site,
        "position": opened.position,
        "d_model": opened.d_model,
        "dtype": head["dtype"],
        "computed_in": head.get("computed_in"),
        "reply_tokens": head.get("reply_tokens", 0),
        "model": head["model"],
        "key": head["key"],
        "schema_version": head["schema_version"],
        "shards": len(opened.shards),
        "shards_on_disk": sum((path / shard["file"]).exists() for shard in opened.shards),
        "bytes": sum(file.stat().st_size for file in path.iterdir() if file.is_file()),
    }
    if as_json:
        print_result(about, as_json)
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in about.items():
        table.add_row(name.replace("_", " "), _spelled(name, value))
    Console().print(table, highlight=False, soft_wrap=True)


def _spelled(name: str, value: Any) -> str:
    if name == "model":
        return f"{value['name']} (weights {value['fingerprint'][:12]}, template {value['template'][:12]})"
    if name == "layers" and value == list(range(value[0], value[-1] + 1)):
        return f"{value[0]} to {value[-1]}"
    if name == "bytes":
        return f"{value:,}"
    if isinstance(value, bool):
        return "yes" if value else "no: run the same `defection cache` again to complete it"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@store.command()
def verify(path: StoreArgument, as_json: options.AsJson = False) -> None:
    """Compare every byte with the checksums; exit status 2 names what is missing or damaged.

    Example: defection store verify runs/store
    """
    from ...activations.stores.store import open_store

    opened = open_store(path)
    damaged = opened.damaged()
    if as_json:
        print_result({"path": str(path), "ok": not damaged, "damaged": damaged}, as_json)
    if damaged:
        raise DefectionError(
            f"{path}: {', '.join(damaged)} missing, unfinished or damaged; `defection store repair` recomputes it"
        )
    if not as_json:
        typer.echo(
            f"{path} is what was written: {_counted(len(opened.shards), 'shard')}, {_counted(len(opened), 'prompt')}"
        )


@store.command()
def repair(
    path: StoreArgument,
    model: Annotated[
        str | None, typer.Option("--model", help="The model it came from.", show_default="the one the manifest names")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option("--prompts", help="The prompts it came from, where prompts.jsonl is damaged.")
    ] = None,
    device: options.Device = "auto",
    as_json: options.AsJson = False,
) -> None:
    """Recompute what is missing or damaged, and nothing else; remove what killed runs left behind.

    Example: defection store repair runs/store
    """
    from ...activations.models.load import load_model
    from ...activations.prompts.loading import load_prompts
    from ...activations.stores.caching import repair as repair_store
    from ...activations.stores.locking import admitted
    from ...activations.stores.store import PROMPTS, open_store

    opened = open_store(path)
    damaged = opened.damaged()
    if PROMPTS in damaged and prompts is None:
        raise DefectionError(f"{path / PROMPTS} is missing or damaged; give the file it was made from with --prompts")
    if damaged:
        head = opened.manifest
        with progress_shown(not as_json):
            try:
                identity = head["model"]
                source, date = model or identity["name"], identity.get("date") or DATE
                loaded = load_model(source, device=device, dtype=head["computed_in"], date=date)
            except DefectionError as error:
                raise DefectionError(f"{error} (the store's model can be given with --model)") from error
            repair_store(path, loaded, load_prompts(prompts) if prompts else None)
    else:
        with admitted(path, alone=True):
            pass  # leaving removes what killed runs left
    text = f"mended {', '.join(damaged)}" if damaged else "nothing was damaged"
    print_result({"path": str(path), "mended": damaged}, as_json, f"{path}: {text}")
