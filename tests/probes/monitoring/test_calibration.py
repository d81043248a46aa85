"""Thresholds on whole conversations keep their promise on new ones, belong to a set-up, and say when they moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from defection.activations.basics.errors import DefectionError
from defection.activations.prompts.prompts import user_prompt
from defection.probes.monitoring.aggregators import AGGREGATORS, parse_aggregator
from defection.probes.monitoring.calibration import (
    LEAST,
    Calibration,
    calibrate,
    checked,
    highest,
    load_calibration,
    ordinary_share,
)
from defection.probes.monitoring.conversations import converse
from defection.probes.monitoring.monitor import Monitor
from defection.probes.monitoring.setup import Setup

from ..conftest import MODEL
from .conftest import padded, random_probe, some_prompts

SETUP = Setup(MODEL, "fp32", {"do_sample": False, "num_beams": 1, "max_new_tokens": 64})
PROMPTS = [user_prompt(f"What of {i}?") for i in range(60)]


def conversations(count: int, seed: int) -> list[torch.Tensor]:
    """Clean replies as models give them: of all lengths, each of a level of its own, neighbours alike, other places
    than text at the beginning."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in torch.randint(3, 80, (count,), generator=generator).tolist():
        noise = torch.randn(length + 1, generator=generator)
        alike = noise[1:] + 0.8 * noise[:-1] + 0.5 * torch.randn(1, generator=generator)
        rows.append(alike * torch.linspace(0.5, 2.0, 80)[:length] - 3.0 * (torch.arange(length) == 1))
    return rows


def calibration_of(rows: Sequence[torch.Tensor], rate: float = 0.05) -> Calibration:
    prompts = tuple(user_prompt(f"{i}?") for i in range(len(rows)))
    return Calibration(prompts, tuple(rows), SETUP, {"max_new_tokens": 64}, ordinary_share(len(rows), rate))


@pytest.mark.parametrize("name", AGGREGATORS)
def test_five_percent_rings_in_five_percent_of_new_conversations(name: str) -> None:
    rates = []
    for seed in range(80):
        calibration = calibration_of(conversations(60, seed))
        alarm = calibration.alarm(name, 0.05)
        fresh = highest(alarm.aggregator, alarm.ordinary, conversations(60, 10_000 + seed))
        rates.append((fresh > alarm.threshold).double().mean())
    mean, error = torch.stack(rates).mean(), torch.stack(rates).std() / len(rates) ** 0.5
    set_by = 60 - ordinary_share(60, 0.05)
    promised = int(0.05 * (set_by + 1)) / (set_by + 1)  # what whole ranks allow, 5% at most
    assert promised - 3 * error - 0.005 < mean < 0.05 + 3 * error


def test_a_threshold_on_tokens_would_ring_in_most_conversations() -> None:
    rows = conversations(200, 1)
    alarm = calibration_of(rows).alarm("maximum", 0.05)
    tokens = torch.cat(rows).quantile(0.95)
    fresh = conversations(200, 2)
    by_token = sum(bool((row > tokens).any()) for row in fresh)
    whole = highest(alarm.aggregator, alarm.ordinary, fresh) > alarm.threshold
    assert by_token > 100
    assert whole.sum() < 30


def test_the_same_replies_give_the_same_alarms_as_they_come_and_afterwards(llama_model, probe) -> None:
    calibration = calibrate(llama_model, probe, PROMPTS, max_new_tokens=10, rate=0.05)
    for name in AGGREGATORS:
        # A threshold that rings now and then: the median of what clean ones reach.
        alarm = replace(calibration.alarm(name, 0.05), threshold=float(calibration.statistics(name).median()))
        noted = converse(llama_model, probe, PROMPTS[::5], max_new_tokens=10, alarm=alarm)
        stopped = converse(llama_model, probe, PROMPTS[::5], max_new_tokens=10, alarm=alarm, on_alarm="stop")
        assert [row.alarm for row in stopped] == [row.alarm for row in noted]
        assert 0 < sum(row.alarm is not None for row in noted) < 12
        for cut, whole in zip(stopped, noted, strict=True):
            assert cut.tokens == (whole.tokens if cut.alarm is None else whole.tokens[: cut.alarm])


def test_batches_change_no_score(llama_model, probe) -> None:
    together = converse(llama_model, probe, PROMPTS[:8], max_new_tokens=6, do_sample=False)
    for prompt, row in zip(PROMPTS[:8], together, strict=True):
        (alone,) = converse(llama_model, probe, [prompt], max_new_tokens=6, do_sample=False)
        assert alone.tokens == row.tokens
        torch.testing.assert_close(alone.scores, row.scores, rtol=1e-3, atol=1e-3)


def test_a_plain_model_ends_its_reply_before_the_next_turn(plain_llama) -> None:
    probe = random_probe(plain_llama)
    rows = converse(plain_llama, probe, PROMPTS[:3], max_new_tokens=6, do_sample=False)
    assert all(len(row.scores) <= 6 for row in rows)


def test_what_is_saved_comes_back(llama_model, probe, tmp_path: Path) -> None:
    calibration = calibrate(llama_model, probe, PROMPTS, max_new_tokens=5, rate=0.05)
    calibration.save(tmp_path / "calm.safetensors")
    found = load_calibration(tmp_path / "calm.safetensors")
    assert found.setup == calibration.setup
    assert found.prompts == calibration.prompts
    assert found.alarm("window-mean", 0.05).threshold == calibration.alarm("window-mean", 0.05).threshold
    with pytest.raises(DefectionError, match="no calibration"):
        load_calibration(tmp_path / "none")
    (tmp_path / "torn").write_bytes((tmp_path / "calm.safetensors").read_bytes()[:100])
    with pytest.raises(DefectionError, match="no calibration written"):
        load_calibration(tmp_path / "torn")


def test_an_alarm_belongs_to_its_set_up(llama_model, probe) -> None:
    calibration = calibrate(llama_model, probe, PROMPTS, max_new_tokens=5, rate=0.05)
    alarm = calibration.alarm("maximum", 0.05)
    inputs = padded(some_prompts())
    with Monitor(llama_model, probe, alarm=alarm) as watch:
        llama_model.network.generate(**inputs, max_new_tokens=4, do_sample=False)
        with pytest.raises(DefectionError, match="do_sample is True"):
            llama_model.network.generate(**inputs, max_new_tokens=4, do_sample=True)
        with pytest.raises(DefectionError, match="6 tokens long"):
            llama_model.network.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert len(watch.replies) == 3
    with Monitor(llama_model, probe, alarm=alarm, strict=False) as watch:
        llama_model.network.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert "6 tokens long" in watch.doubts[0]
    other = replace(alarm, setup=replace(calibration.setup, model=replace(probe.model, fingerprint="x")))
    with pytest.raises(DefectionError, match="other weights"):
        Monitor(llama_model, probe, alarm=other)


def test_other_numbers_are_told_with_a_figure(llama_model, probe) -> None:
    import copy

    calibration = calibrate(llama_model, probe, PROMPTS, max_new_tokens=5, rate=0.05)
    alarm = calibration.alarm("maximum", 0.05)
    same = calibration.check(llama_model, probe, alarm)
    assert same.holds
    assert (same.differences, same.shift) == ((), 0.0)
    coarse = replace(llama_model, network=copy.deepcopy(llama_model.network).bfloat16())
    with pytest.raises(DefectionError, match="bf16, not fp32"):
        Monitor(coarse, probe, alarm=alarm)
    found = calibration.check(coarse, probe, alarm)
    assert found.differences == ("the weights are bf16, not fp32",)
    assert "the weights are bf16" in found.sentence
    int8 = torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(llama_model.network), {torch.nn.Linear}, dtype=torch.qint8
    )
    assert calibration.check(replace(llama_model, network=int8), probe, alarm).differences == (
        "the weights are int8, not fp32",
    )


def test_a_moved_statistic_no_longer_holds_and_the_same_distribution_does() -> None:
    calibration = calibration_of(conversations(240, 3), 0.01)
    alarm = calibration.alarm("maximum", 0.01)
    before = calibration.statistics("maximum")
    assert checked(before, before, alarm).holds
    up, down = (checked(before, before + change * before.std(), alarm) for change in (1.0, -1.0))
    assert not up.holds
    assert up.rang > 1
    assert not down.holds
    assert down.shift == pytest.approx(-1.0, abs=1e-5)
    assert "no longer holds" in down.sentence


@pytest.mark.parametrize("count", [21, 24, 39, 40, 90])
def test_whatever_is_enough_for_a_rate_makes_an_alarm(count: int) -> None:
    alarm = calibration_of(conversations(count, 0), rate=0.5).alarm("maximum", 0.5)
    assert 1 <= alarm.clean <= count - LEAST


def test_too_few_or_spoilt_clean_prompts_are_refused(llama_model, probe) -> None:
    with pytest.raises(DefectionError, match="takes 99, and 20"):
        calibrate(llama_model, probe, PROMPTS, rate=0.01)
    triggered = [*PROMPTS, user_prompt("now", triggered=True)]
    with pytest.raises(DefectionError, match="clean prompt"):
        calibrate(llama_model, probe, triggered, rate=0.05)
    with pytest.raises(DefectionError, match="allow longer ones"):
        highest(parse_aggregator("coherent-segment"), calibration_of(conversations(60, 1)).ordinary, [torch.zeros(2)])


def test_several_replies_to_a_prompt_are_refused(llama_model, probe) -> None:
    with pytest.raises(DefectionError, match="num_return_sequences must be 1"):
        converse(llama_model, probe, ["Who?"], max_new_tokens=2, num_return_sequences=2)
