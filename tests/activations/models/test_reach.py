from __future__ import annotations

import copy

import pytest
import torch
from defection.activations import load_model
from defection.activations.models.reach import reach, skips_padding

from ...zoo import FAMILIES, random_network

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
SHARING = [family for family in FAMILIES if reach(random_network(family))]


@DTYPES
@pytest.mark.parametrize("family", SHARING)
def test_only_mpts_alibi_counts_padding_as_context_whatever_the_dtype(family: str, dtype: torch.dtype) -> None:
    assert skips_padding(copy.deepcopy(random_network(family)).to(dtype)) == (family != "mpt")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_embedded_model_replies_to_prompts_of_any_length_in_one_batch(dtype: str) -> None:
    assert load_model("smollm2-135m", dtype=dtype, device="cpu").skips_padding
