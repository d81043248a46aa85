"""What the page on reading at scale says can be done is done by the code that stands there."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from defection.activations.basics.files import write_jsonl
from defection.activations.prompts.prompts import Prompt

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "scale.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_calls_of_the_page_run(llama_folder: Path, mixed_prompts: list[Prompt], tmp_path: Path) -> None:
    pytest.importorskip("transformer_lens")
    write_jsonl(tmp_path / "prompts.jsonl", [prompt.to_json() for prompt in mixed_prompts])
    named = {"MODEL": llama_folder, "PROMPTS": tmp_path / "prompts.jsonl", "STORE": tmp_path / "store"}
    code = next(block for block in BLOCKS if "load_model" in block)
    for name, path in named.items():
        code = code.replace(f'"{name}"', f'"{path}"')
    said: dict[str, Any] = {}
    exec(compile(code, "scale.md", "exec"), said)
    assert said["store"].layers == said["residuals"].layers[::4]
    expected = said["residuals"].at(0)
    torch.testing.assert_close(said["rows"].read().at(0), expected.cpu(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(said["lens"]["blocks.0.hook_out"][:, 0], said["rows"].read().at(0))
    torch.testing.assert_close(said["some"].at(0), said["store"].read().at(0)[[2, 0]])


def test_the_shares_of_the_page_are_as_many_as_it_says() -> None:
    assert {len(range(rank, 19_532, 16)) for rank in range(16)} == {1220, 1221}
    assert "1,220 or 1,221 of the 19,532" in PAGE
