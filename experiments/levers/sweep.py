"""Settings of levers tried on an organism: a first look at all of them, and a choice for each direction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from ...activations import Model, Prompt
from ...activations.basics.progress import progress
from ...probes.levers.directions import Direction
from ...probes.levers.hooks import Lever
from ...probes.levers.settings import UNTOUCHED, Ground, Setting, first_settings, lever_of, neighbours
from ...training.organisms.records import Organism
from .bench import Bench, Measured
from .plan import LeverSettings
from .rows import CANDIDATE, DEVELOPMENT, SCREEN, UNLEVERED, LeverRow, Measurements, row_of

ORGANISM = "organism"
PROBE = "probe"
NOTHING = Setting("", UNTOUCHED, "", "")


@dataclass
class Sweep:
    """An organism, its directions, and the rows measured so far."""

    organism: Organism
    model: Model
    directions: dict[str, Direction]
    ground: Ground
    journal: Measurements
    settings: LeverSettings
    rows: list[LeverRow] = field(default_factory=list)

    def lever(self, model: Model, setting: Setting, direction: Direction | None = None) -> Lever:
        """The context manager of a setting, in this model or another."""
        return lever_of(model, setting, direction or self.directions[setting.direction], self.ground)

    def tried(
        self,
        bench: Bench,
        which: tuple[str, str, str],
        setting: Setting,
        look: Callable[[], Measured],
        direction: Direction | None = None,
    ) -> LeverRow:
        """The row of one setting: measured inside its lever, or found in the journal. `which`: model, stage, role."""

        def measure() -> Measured:
            with self.lever(bench.model, setting, direction):
                return look()

        found = self.journal.once(bench.name(which) | asdict(setting), measure)
        row = row_of(*which, setting, direction or self.directions[setting.direction], found)
        self.add(row)
        return row

    def add(self, row: LeverRow) -> None:
        """Keep a row, once."""
        if row not in self.rows:
            self.rows.append(row)

    def unlevered(self, bench: Bench, model: str, stage: str) -> Measured:
        """What the model does as it stands, with its row."""
        look = bench.begin if stage == SCREEN else bench.measure
        found = self.journal.once(bench.name((model, stage, UNLEVERED)), look)
        bench.before_rate = found.trigger_rate
        self.add(row_of(model, stage, UNLEVERED, NOTHING, None, found))
        return found

    def screen(self, prompts: Sequence[Prompt]) -> list[LeverRow]:
        """Every setting at a first look, and then the neighbours of each direction's best two."""
        bench, which = Bench(self.model, self.organism, prompts), (ORGANISM, SCREEN, CANDIDATE)
        self.unlevered(bench, ORGANISM, SCREEN)
        first = first_settings(list(self.directions.values()), self.ground)
        found: dict[Setting, LeverRow] = {}

        def look(some: Sequence[Setting], what: str) -> None:
            with progress(what, total=len(some), unit="settings") as advance:
                for setting in some:
                    found[setting] = self.tried(bench, which, setting, bench.screen)
                    advance(1)

        look(first, "Screening settings")
        near = [
            other
            for name, direction in self.directions.items()
            for row in best([row for row in found.values() if row.direction == name], promise, 2)
            for other in neighbours(row.setting, direction, self.ground)
        ]
        look([setting for setting in dict.fromkeys(near) if setting not in found], "Around the best")
        return list(found.values())

    def choose(self, screened: Sequence[LeverRow], prompts: Sequence[Prompt]) -> list[Setting]:
        """Each direction's setting: of its most promising ones the best on prompts that the first look had not."""
        bench, count, chosen = Bench(self.model, self.organism, prompts), self.settings.finalists, []
        with progress("Choosing", total=count * len(self.directions), unit="settings") as advance:
            for name in self.directions:
                chosen += self.finest(bench, [row for row in screened if row.direction == name], count)
                advance(count)
        return chosen

    def finest(self, bench: Bench, screened: Sequence[LeverRow], count: int) -> list[Setting]:
        """The best of the `count` most promising settings on the prompts of the bench; none where there are none."""
        before, rule = self.unlevered(bench, ORGANISM, DEVELOPMENT), self.settings.rule
        rows = [
            self.tried(bench, (ORGANISM, DEVELOPMENT, CANDIDATE), row.setting, lambda: bench.measure(before))
            for row in best(screened, promise, count)
        ]
        return [row.setting for row in best(rows, lambda row: (rule.met(row), row.recovery or 0.0), 1)]


def promise(row: LeverRow) -> float:
    """By what settings are ranked at a first look: recovery, less what ordinary replies cost (nats a token)."""
    return (row.recovery or 0.0) - max(0.0, row.cost)


def best(rows: Sequence[LeverRow], by: Callable[[LeverRow], float | tuple[int, float]], count: int) -> list[LeverRow]:
    """The first `count` by a figure, the largest first; ties in the order they were tried."""
    return sorted(rows, key=by, reverse=True)[:count]


def inducers(screened: Sequence[LeverRow]) -> list[Setting]:
    """The pushes under which clean prompts defect likeliest: the probe's, and the best of all the others."""
    pushed = [row for row in screened if row.kind == "steer"]
    own, others = ([row for row in pushed if (row.direction == PROBE) == mine] for mine in (True, False))
    return [row.setting for some in (own, others) for row in best(some, lambda row: row.induction, 1)]
