import dataclasses
import json
from pathlib import Path

import pytest
from defection.activations.basics.errors import DefectionError
from defection.activations.models.model import Model
from defection.activations.prompts.prompts import Message, Prompt, user_prompt
from defection.activations.prompts.rendered import tokenize
from defection.activations.reading.batching import plan_batches
from defection.activations.reading.capture import capture
from defection.activations.reading.forward import Reading
from defection.activations.stores.estimate import computed_tokens, estimate
from defection.experiments.commands.cli import main
from torch import Tensor


@pytest.mark.parametrize("position", ["last", "all", "mean:0:9"])
def test_the_tokens_estimated_are_those_that_a_capture_computes(
    llama: Model, mixed_prompts: list[Prompt], position: str
) -> None:
    prompts = [*mixed_prompts, dataclasses.replace(mixed_prompts[6], id="again")]
    computed: list[int] = []

    def count(module: object, args: tuple[Tensor], output: Tensor) -> None:
        computed.append(output.shape[:2].numel())

    found = estimate(llama, prompts, Reading((0, 3), position=position), max_tokens=200)
    handle = llama.blocks[0].register_forward_hook(count)
    captured = capture(llama, prompts, layers=[0, 3], position=position, max_tokens=200)
    handle.remove()
    assert found.computed_tokens == sum(computed)
    assert found.tokens == sum(captured.n_tokens)
    assert (found.vectors, found.bytes) == (len(captured.values), captured.values.nbytes)


def test_a_shard_shares_nothing_with_another(llama: Model) -> None:
    system = Message("system", "A long rule that everybody has to obey. " * 6)
    prompts = [Prompt(str(i), (system, Message("user", f"And {i}?"))) for i in range(12)]
    whole, cut = (estimate(llama, prompts, Reading((0,)), rows_per_shard=rows) for rows in (12, 4))
    assert (whole.batches, cut.batches) == (2, 6)  # who carries the prefix, and the others
    assert cut.computed_tokens > whole.computed_tokens + 400


def test_twice_the_devices_take_half_the_time(llama: Model) -> None:
    found = estimate(llama, [user_prompt("Hello")], Reading((0,)), devices=4, measured_seconds=0)
    assert found.seconds == pytest.approx(found.computed_tokens / found.tokens_per_second / 4)
    with pytest.raises(DefectionError, match="0 devices"):
        estimate(llama, [], Reading((0,)), devices=0)


def test_no_prompts_cost_nothing(llama: Model) -> None:
    found = estimate(llama, [], Reading((0,)))
    assert (found.tokens, found.bytes, found.seconds) == (0, 0, 0)
    assert "0 prompts" in str(found)


def test_a_prefix_is_counted_where_it_is_first_computed() -> None:
    system = list(range(300))
    ids = [[*system, 1000 + i, *[7] * 60] for i in range(10)]
    batches = plan_batches(ids, max_tokens=200)
    assert len(batches) == 4
    assert sum(computed_tokens(ids, batches)) == 300 + 10 * 61


def test_an_estimate_is_readable_and_json(llama: Model, mixed_prompts: list[Prompt]) -> None:
    found = estimate(llama, mixed_prompts, Reading((0,)), devices=2)
    assert json.loads(json.dumps(found.to_json()))["prompts"] == len(mixed_prompts)
    assert f"{found.tokens:,} tokens" in str(found)
    assert "2 such devices" in str(found)
    assert found.tokens == sum(map(len, tokenize(llama.tokenizer, mixed_prompts)))


def test_the_command_says_what_a_store_would_cost_and_writes_nothing(
    llama_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "store")
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "cache",
                str(llama_folder),
                "clean",
                "--out",
                out,
                "--layers",
                "1:3",
                "--dtype",
                "bf16",
                "--estimate",
                "--json",
            ]
        )
    assert not ended.value.code
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == said["prompts"] * 2 * 32 * 2
    assert said["seconds"] > 0
    assert not Path(out).exists()
