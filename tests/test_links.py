"""Every link between the repository's pages leads somewhere, every figure and file that they name is there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("activations", "training", "probes", "experiments", "results", "tests", "benchmarks", "notebooks", "docs")
PAGES = sorted(
    [*ROOT.glob("*.md"), *(page for folder in PACKAGES for page in (ROOT / folder).rglob("*.md"))],
)
HISTORY = ("CHANGELOG.md",)
"""May name what is no longer there."""
LINK = re.compile(r"\[[^\]]*\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
FILE = re.compile(rf"`((?:{'|'.join(PACKAGES)})/[\w./+-]*)`")


def anchors(page: Path) -> set[str]:
    """What links into the page may end in: GitHub's names of its headings."""
    found: list[str] = []
    for heading in re.findall(r"^#+ +(.*?) *$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        found.append(re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"))
    return {f"{name}-{place}" if place else name for name in found for place in range(found.count(name))}


def broken(page: Path) -> list[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    wrong = []
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            wrong.append(link)
    if page.name not in HISTORY:
        wrong += [name for name in FILE.findall(text) if not (ROOT / name).exists()]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert broken(page) == []


@pytest.mark.parametrize(
    "text", ["[a](no.md)", "![a](figures/no.svg)", "[a](there.md#no)", "[a](#no)", "`results/no.csv`", "[a](<no.md>)"]
)
def test_a_link_that_leads_nowhere_is_found(tmp_path: Path, text: str) -> None:
    (tmp_path / "there.md").write_text("# A `heading`, twice\n\n# Other\n\n```\n[x](in-code.md)\n# no\n```\n")
    good = "[a](there.md) [b](there.md#a-heading-twice) [c](https://a.org/x) [d](#here) `[e](f)` `probes/meaning/`"
    (tmp_path / "page.md").write_text(f"# Here\n\n{good}\n\n{text}\n")
    assert broken(tmp_path / "page.md") == [re.sub(r".*\(<?|>?\)|`", "", text)]


def test_results_hold_tables_and_figures_once() -> None:
    """A table as compressed CSV, a figure in one format; pages are rebuilt by `defection report`."""
    files = [path.relative_to(ROOT) for path in (ROOT / "results").rglob("*") if path.is_file()]
    assert any(path.name.endswith(".csv.gz") for path in files)
    assert not [path for path in files if path.suffix in (".csv", ".parquet")]
    assert not [path for path in files if path.suffix == ".json" and "rows" in json.loads((ROOT / path).read_text())]
    figures = [path.with_suffix("") for path in files if path.suffix in (".png", ".svg")]
    assert len(set(figures)) == len(figures)
    kept = [path for path in files if path.suffix != ".html"]
    assert sum((ROOT / path).stat().st_size for path in kept) < 5e6
