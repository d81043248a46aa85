import copy

import torch
from defection.activations.models.logits import own_logits
from defection.activations.models.model import Model
from peft import LoraConfig, get_peft_model

TOKENS = torch.arange(20, 60)[None]


def states_of(network: torch.nn.Module) -> torch.Tensor:
    return network.get_decoder()(input_ids=TOKENS).last_hidden_state[0]


@torch.inference_mode()
def test_logits_of_every_family_are_those_of_its_own_forward(every_model: Model) -> None:
    """PITFALLS 34."""
    network = every_model.network
    before = dict(vars(network))
    found = own_logits(network, states_of(network)[[3, 39]])
    torch.testing.assert_close(found, network(input_ids=TOKENS).logits[0, [3, 39]], rtol=1e-5, atol=1e-5)
    assert vars(network) == before  # PITFALLS 40


def test_an_adapter_on_the_vocabulary_matrix_counts_and_learns(llama: Model) -> None:
    network = copy.deepcopy(llama.network)
    adapted = get_peft_model(network, LoraConfig(target_modules=["lm_head"], init_lora_weights=False))
    found = own_logits(adapted, states_of(adapted))
    torch.testing.assert_close(found, adapted(input_ids=TOKENS).logits[0])
    found.sum().backward()
    trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad.abs().sum() > 0 for parameter in trained)
