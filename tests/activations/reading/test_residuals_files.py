"""Residuals move, become arrays, and come back from a file with all that is known of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from defection.activations import DefectionError, Model, Prompt, capture, load_residuals, user_prompt


@pytest.mark.parametrize("position", ["last", "all"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_residuals_come_back_from_their_file(
    llama: Model, mixed_prompts: list[Prompt], tmp_path: Path, position: str, dtype: str
) -> None:
    read = capture(llama, mixed_prompts, layers="1,3", position=position, dtype=dtype, site="before")
    read.save(tmp_path / "read.safetensors")
    back = load_residuals(tmp_path / "read.safetensors")
    assert torch.equal(back.values, read.values)
    assert back.values.dtype == read.values.dtype
    assert (back.prompts, back.model, back.layers) == (read.prompts, read.model, read.layers)
    assert (back.position, back.site, back.offsets, back.n_tokens) == (
        read.position,
        read.site,
        read.offsets,
        read.n_tokens,
    )


def test_they_move_and_become_arrays(llama: Model, mixed_prompts: list[Prompt]) -> None:
    read = capture(llama, mixed_prompts, dtype="bf16")
    assert read.to(dtype=torch.float64).values.dtype == torch.float64
    assert read.to("cpu").prompts == read.prompts
    assert read.to(torch.device("meta")).values.device.type == "meta"
    array = read.numpy()
    assert array.dtype == np.float32
    assert np.array_equal(array, read.values.float().numpy())
    assert np.array_equal(read.select([2, 0]).numpy(), array[[2, 0]])


def test_a_repeated_id_and_a_file_of_another_kind_are_refused(llama: Model, tmp_path: Path) -> None:
    read = capture(llama, [user_prompt("a", id="same"), user_prompt("b", id="same")])
    with pytest.raises(DefectionError, match="'same'"):
        read.save(tmp_path / "read.safetensors")
    assert not (tmp_path / "read.safetensors").exists()
    (tmp_path / "words").write_text("no tensors")
    for path, said in ((tmp_path / "nothing", "no file of residuals at"), (tmp_path / "words", "no file of residuals")):
        with pytest.raises(DefectionError, match=said):
            load_residuals(path)
