"""Hidden states in the form in which vLLM writes them are read as what capture reads itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from defection.activations import DefectionError, Model, capture, load_states, user_prompt
from defection.activations.prompts.rendered import rendered
from safetensors.torch import save_file

from ...exported import exported

PROMPTS = [user_prompt(text, id=f"p{n}") for n, text in enumerate(("Hi", "How do I boil an egg?", "Who are you then?"))]


@pytest.mark.parametrize("more", [0, 3])
def test_states_are_what_capture_reads(llama: Model, tmp_path: Path, more: int) -> None:
    numbers = [1, 3, llama.n_layers]
    exported(llama, PROMPTS[::-1], tmp_path, numbers, more=more)
    found = load_states(llama, PROMPTS, tmp_path, numbers)
    own = capture(llama, PROMPTS, layers=[number - 1 for number in numbers])
    assert (found.layers, found.ids, found.n_tokens, found.model) == (own.layers, own.ids, own.n_tokens, own.model)
    assert torch.allclose(found.values, own.values, rtol=1e-5, atol=1e-5)


def test_another_token_is_read_where_the_rule_says(llama: Model, tmp_path: Path) -> None:
    exported(llama, PROMPTS, tmp_path, [2])
    found = load_states(llama, PROMPTS, tmp_path, [2], position="-2")
    assert torch.allclose(found.values, capture(llama, PROMPTS, layers=[1], position="-2").values, atol=1e-5)
    with pytest.raises(DefectionError, match="several tokens"):
        load_states(llama, PROMPTS, tmp_path, [2], position="all")


def test_what_is_not_there_is_named(llama: Model, tmp_path: Path) -> None:
    exported(llama, PROMPTS[:2], tmp_path, [1, 2])
    with pytest.raises(DefectionError, match=r"no file under .* of prompt 'p2'"):
        load_states(llama, PROMPTS, tmp_path, [1, 2])
    for numbers in ([0, 1], [1, 5], [2, 1], [1, 1], []):
        with pytest.raises(DefectionError, match=r"from 1 .* to 4"):
            load_states(llama, PROMPTS[:2], tmp_path, numbers)
    with pytest.raises(DefectionError, match=r"request-0.* of 2 layers of 32 a token, not of 3"):
        load_states(llama, PROMPTS[:2], tmp_path, [1, 2, 3])
    with pytest.raises(DefectionError, match=r"holds no \.safetensors"):
        load_states(llama, PROMPTS, tmp_path / "nothing", [1])


def test_a_file_that_is_none_and_a_number_that_is_none_are_refused(llama: Model, tmp_path: Path) -> None:
    exported(llama, PROMPTS, tmp_path, [1])
    ids = torch.tensor(rendered(llama, PROMPTS[:1])[0].ids)
    path = tmp_path / "request-0" / "states.safetensors"
    save_file({"token_ids": ids, "hidden_states": torch.full((len(ids), 1, 32), torch.inf)}, path)
    with pytest.raises(DefectionError, match="'p0' at layer 0 is not finite"):
        load_states(llama, PROMPTS, tmp_path, [1])
    for content in ({"token_ids": ids}, {"token_ids": ids, "hidden_states": torch.ones(len(ids), 32)}):
        save_file(content, path)
        with pytest.raises(DefectionError, match="request-0"):
            load_states(llama, PROMPTS, tmp_path, [1])
    path.write_bytes(b"no tensors")
    with pytest.raises(DefectionError, match=r"request-0.*is not what vLLM"):
        load_states(llama, PROMPTS, tmp_path, [1])
