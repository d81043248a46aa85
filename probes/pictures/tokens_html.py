"""A conversation coloured by score, token by token, as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from ...activations.basics.errors import DefectionError

if TYPE_CHECKING:
    from .style import Row

TITLE = "Scores by token"
LIMIT = 4.0
"""Score at which the colours end, in standard deviations of clean prompts."""
ABOVE, BELOW = (213, 94, 0), (0, 114, 178)
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.9 system-ui, sans-serif; color: #111; background: #fff; max-width: 46rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.15rem; margin: 0 0 .2rem; }
.note { color: #555; font-size: .85rem; line-height: 1.4; margin: 0 0 1rem; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #ddd; border-radius: 6px; padding: .8rem 1rem;
  margin: 0 0 1.2rem; }
.said span { border-radius: 3px; padding: .12em 0; }
.said b { font-weight: normal; opacity: .45; }
.said span.alarm { box-shadow: inset 0 -2px 0 #6b2e00; }
.scale { display: flex; align-items: center; gap: .6rem; font-size: .85rem; margin-bottom: 1rem; }
.scale i { flex: 0 0 14rem; height: .8rem; border-radius: 3px;
  background: linear-gradient(90deg, rgba(0,114,178,.8), #fff, rgba(213,94,0,.8)); }
"""


def tokens_html(
    conversations: Mapping[str, Sequence[Row]],
    *,
    threshold: float | None = None,
    marked: bool = False,
) -> str:
    """The page: each conversation under its heading, each token on the colour of its score.

    `conversations` maps headings to tables with the columns position, token, score (`tokens.over_layers`). Blue is
    below an ordinary prompt's score, orange above; colours end at ±4. The score is in each token's tooltip;
    tokens above `threshold` are underlined, or with `marked` those whose row says `alarm`. A token without a score
    (None) has no colour. Whatever the texts hold is escaped.
    Raises DefectionError when a table has more than one score for a token.
    """
    shown = [_conversation(heading, table, threshold) for heading, table in conversations.items()]
    underlined = "" if threshold is None else f" Underlined: above the threshold of {threshold:.2f}."
    if marked:
        underlined = " Underlined: where the alarm rang; the first token shown is the prompt's last."
    note = (
        "Standard deviations from what clean prompts score at that place. The probe was fitted at the last token "
        f"before a reply; at the others its score is a look inside, not a verdict.{underlined}"
    )
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{TITLE}</title><style>{STYLE}</style></head>
<body>
<h1>{TITLE}</h1>
<p class="note">{escape(note)}</p>
<div class="scale"><span>−{LIMIT:g}</span><i></i><span>+{LIMIT:g}</span></div>
{"".join(shown)}
</body>
</html>
"""


def _conversation(heading: str, table: Sequence[Row], threshold: float | None) -> str:
    rows = sorted(table, key=lambda row: row["position"])
    if len({row["position"] for row in rows}) != len(rows):
        raise DefectionError(f"{heading!r} has several scores for a token; choose a layer, or average over a band")
    spans = "".join(_token(row, threshold) for row in rows)
    return f'<h2 class="note">{escape(heading)}</h2>\n<div class="said">{spans}</div>\n'


def _token(row: Row, threshold: float | None) -> str:
    if row["score"] is None:
        return f"<span>{_visible(str(row['token']))}</span>"
    score = float(row["score"])
    tone = ABOVE if score > 0 else BELOW
    strength = 0.8 * min(1.0, abs(score) / LIMIT)
    rang = row.get("alarm", False) if threshold is None else score > threshold
    alarm = ' class="alarm"' if rang else ""
    return (
        f'<span{alarm} title="{score:+.2f}" style="background:rgba({tone[0]},{tone[1]},{tone[2]},{strength:.2f})">'
        f"{_visible(str(row['token']))}</span>"
    )


def _visible(token: str) -> str:
    """The token, escaped; a line break is shown, since the last token before a reply is often one."""
    return escape(token).replace("\n", "<b>⏎</b>\n")
