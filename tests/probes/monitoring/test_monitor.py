"""A monitor's scores are those of the same text read afterwards, however it was generated; nothing is left behind."""

from __future__ import annotations

import copy
import dataclasses
import threading

import pytest
import torch
import transformers as hf
from defection.activations.basics.errors import DefectionError
from defection.activations.models.wrap import wrap
from defection.probes.monitoring.monitor import AlarmEvent, Monitor

from ...conftest import TEMPLATE, make_tokenizer
from ...zoo import FAMILIES, WITHOUT_MIDDLE, random_network
from .conftest import END, PAD, assert_equals_reading, model_of, padded, random_probe, read_afterwards, some_prompts

NEW = 12


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_text_read_afterwards_in_every_family(family: str) -> None:
    model = model_of(family)
    probe = random_probe(model)
    prompts = some_prompts()
    inputs = padded(prompts)
    plain = model.network.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    with Monitor(model, probe) as watch:
        seen = model.network.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    assert torch.equal(plain, seen)
    assert_equals_reading(model, probe, prompts, watch.replies, tolerance=1e-3)


@pytest.mark.parametrize("site", ["before", "middle"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_probe_is_read_at_its_own_site(family: str, site: str) -> None:
    assert family not in WITHOUT_MIDDLE
    model = model_of(family)
    probe = random_probe(model, site=site, layers=(0, 2))
    prompts = some_prompts()
    with Monitor(model, probe) as watch:
        model.network.generate(**padded(prompts), max_new_tokens=NEW, do_sample=False)
    assert_equals_reading(model, probe, prompts, watch.replies)


WAYS = {
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 0},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "chunks": {"prefill_chunk_size": 4},
    "chunks that leave one": {"prefill_chunk_size": 13},
    "repetition penalty": {"repetition_penalty": 1.3},
    "a dictionary": {"return_dict_in_generate": True, "output_hidden_states": True},
    "a generation config": {"generation_config": hf.GenerationConfig(max_new_tokens=NEW, pad_token_id=PAD)},
}


def options_of(way: str) -> dict[str, object]:
    return WAYS[way] if "generation_config" in WAYS[way] else {"max_new_tokens": NEW, "do_sample": False, **WAYS[way]}


@pytest.mark.parametrize("way", WAYS)
def test_scores_are_those_read_afterwards_however_it_is_generated(llama_model, probe, way: str) -> None:
    prompts = some_prompts()
    with Monitor(llama_model, probe) as watch:
        llama_model.network.generate(**padded(prompts), **options_of(way))
    assert_equals_reading(llama_model, probe, prompts, watch.replies)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("masked", [True, False])
def test_padding_on_the_right_is_no_prompts_last_token(llama_model, probe, way: str, masked: bool) -> None:
    prompts = some_prompts()
    inputs = padded(prompts, "right")
    if not masked:
        del inputs["attention_mask"]
    with Monitor(llama_model, probe) as watch:
        if not masked and "static" in way:
            with pytest.raises(DefectionError, match="attention_mask"):
                llama_model.network.generate(**inputs, **options_of(way))
            return
        llama_model.network.generate(**inputs, **options_of(way))
    for prompt, reply in zip(prompts, watch.replies, strict=True):
        wanted = read_afterwards(llama_model, probe, prompt, [])
        # What Hugging Face says after padding stands at other positions than in the text (it warns of that): only the
        # longest prompt's reply is one that can be read afterwards.
        torch.testing.assert_close(reply.scores[:1], wanted, rtol=2e-4, atol=2e-4)
    assert_equals_reading(llama_model, probe, prompts[2:], watch.replies[2:])


def test_several_return_sequences_are_rows_one_after_another(llama_model, probe) -> None:
    prompts = some_prompts()
    torch.manual_seed(3)
    with Monitor(llama_model, probe) as watch:
        llama_model.network.generate(
            **padded(prompts), max_new_tokens=NEW, do_sample=True, top_k=0, num_return_sequences=2
        )
    assert_equals_reading(llama_model, probe, [prompt for prompt in prompts for _ in range(2)], watch.replies)


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("returned", [1, 3])
def test_beams_are_followed(llama_model, probe, sampling: bool, returned: int) -> None:
    prompts = some_prompts()
    options = {"max_new_tokens": NEW, "num_beams": 4, "num_return_sequences": returned, "do_sample": sampling}
    torch.manual_seed(3)
    plain = llama_model.network.generate(**padded(prompts), **options)
    torch.manual_seed(3)
    with Monitor(llama_model, probe) as watch:
        seen = llama_model.network.generate(**padded(prompts), **options)
    assert torch.equal(plain, seen)
    assert_equals_reading(llama_model, probe, [p for p in prompts for _ in range(returned)], watch.replies)


def test_a_prefix_that_is_cached_already(llama_model, probe) -> None:
    shared, tails = some_prompts((11,), seed=5)[0], some_prompts((4, 4), seed=6)
    whole = [shared + tail for tail in tails]
    for kind in (hf.DynamicCache, hf.StaticCache):
        cache = kind(config=llama_model.network.config, **({"max_cache_len": 64} if kind is hf.StaticCache else {}))
        llama_model.network(input_ids=torch.tensor([shared] * 2), past_key_values=cache, use_cache=True)
        with Monitor(llama_model, probe) as watch:
            llama_model.network.generate(
                input_ids=torch.tensor(whole), past_key_values=cache, max_new_tokens=NEW, do_sample=False
            )
        assert_equals_reading(llama_model, probe, whole, watch.replies)


def test_rows_that_have_ended_score_nothing(llama_model, probe) -> None:
    prompts = some_prompts()
    plain = llama_model.network.generate(**padded(prompts), max_new_tokens=NEW, do_sample=False)
    end = int(plain[0, 14 + 3])  # the first row's fourth token ends it
    with Monitor(llama_model, probe) as watch:
        llama_model.network.generate(**padded(prompts), max_new_tokens=NEW, do_sample=False, eos_token_id=end)
    assert watch.scores[0].isnan().any()
    assert len(watch.replies[0].scores) <= 4
    for reply in watch.replies:
        assert end not in reply.tokens
    assert_equals_reading(llama_model, probe, prompts, watch.replies)


def test_a_row_that_a_stop_string_ends_scores_nothing_after_it(llama_model, probe) -> None:
    prompts, tokenizer = some_prompts(), llama_model.tokenizer
    plain = llama_model.network.generate(**padded(prompts), max_new_tokens=NEW, do_sample=False)
    said = [[tokenizer.decode(token) for token in row] for row in plain[:, 14:-1]]
    end = next(text for text in said[1] if text.isascii() and text not in said[0] + said[2])
    options = {"stop_strings": [end], "tokenizer": tokenizer}
    with Monitor(llama_model, probe) as watch:
        llama_model.network.generate(**padded(prompts), max_new_tokens=NEW, do_sample=False, **options)
    assert len(watch.replies[1].scores) == said[1].index(end) + 1 < watch.scores.shape[1]
    assert_equals_reading(llama_model, probe, prompts, watch.replies)


def test_behind_a_stop_string_nothing_rings(llama_model, probe) -> None:
    """An alarm that acts looks at what the reply's last token does to the stream, which is no part of the reply."""
    prompts, tokenizer = some_prompts(), llama_model.tokenizer
    with Monitor(llama_model, probe) as watch:
        llama_model.network.generate(**padded(prompts), max_new_tokens=NEW, do_sample=False)
    row, place, end = next(
        (row, place, text)
        for row, reply in enumerate(watch.replies)
        for place, text in enumerate(map(tokenizer.decode, reply.tokens[:-1]))
        if text.isascii() and text not in tokenizer.decode(reply.tokens[:place])
        if reply.scores[place + 1] > reply.scores[: place + 1].max() + 1e-3
    )
    scores = watch.replies[row].scores
    threshold = float(scores[: place + 1].max() + scores[place + 1]) / 2
    options = {"stop_strings": [end], "tokenizer": tokenizer, "max_new_tokens": NEW, "do_sample": False}
    # The other rows speak on, or nothing would be read behind this one.
    with Monitor(llama_model, probe, alarm=threshold, on_alarm=lambda event: event.row == row) as acting:
        llama_model.network.generate(**padded(prompts), **options)
    assert (acting.replies[row].alarm, acting.replies[row].stopped) == (None, False)
    assert acting.replies[row].tokens == watch.replies[row].tokens[: place + 1]


def test_bf16_scores_are_those_read_afterwards_to_its_rounding() -> None:
    model = wrap(copy.deepcopy(random_network("llama")).bfloat16(), make_tokenizer(TEMPLATE))
    probe, prompts = random_probe(model), some_prompts()
    with Monitor(model, probe) as watch:
        model.network.generate(**padded(prompts), max_new_tokens=NEW, do_sample=False)
    spread = watch.scores[~watch.scores.isnan()].std()
    for prompt, reply in zip(prompts, watch.replies, strict=True):
        wanted = read_afterwards(model, probe, prompt, reply.tokens)[: len(reply.scores)]
        assert (reply.scores - wanted).abs().median() < 0.1 * spread


def test_a_streamer_and_a_thread_of_its_own(llama_model, probe) -> None:
    prompt = some_prompts((9,))
    streamer = hf.TextIteratorStreamer(llama_model.tokenizer, skip_prompt=True)
    with Monitor(llama_model, probe) as watch:
        options = {**padded(prompt), "max_new_tokens": NEW, "do_sample": False, "streamer": streamer}
        thread = threading.Thread(target=llama_model.network.generate, kwargs=options)
        thread.start()
        text = "".join(streamer)
        thread.join()
    assert text == llama_model.tokenizer.decode(watch.replies[0].tokens)
    assert_equals_reading(llama_model, probe, prompt, watch.replies)


def test_a_pipeline_and_a_peft_model(llama_model) -> None:
    from peft import LoraConfig, get_peft_model

    peft = get_peft_model(copy.deepcopy(random_network("llama")), LoraConfig(target_modules=["q_proj"]))
    for network in (peft, copy.deepcopy(random_network("llama"))):
        model = wrap(network, llama_model.tokenizer)
        probe = random_probe(model)
        pipe = hf.pipeline("text-generation", model=network, tokenizer=make_tokenizer(TEMPLATE))
        with Monitor(model, probe) as watch:
            pipe(["Who goes there?", "Nobody."], batch_size=2, max_new_tokens=NEW, do_sample=False, top_k=None)
        prompts = [model.tokenizer(text)["input_ids"] for text in ("Who goes there?", "Nobody.")]
        assert_equals_reading(model, probe, prompts, watch.replies)


def test_a_model_spread_over_memory_and_disk(llama_model, probe, save_tiny, tmp_path) -> None:
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{layer}": "disk" if layer % 2 else "cpu" for layer in range(4)}
    folder, options = save_tiny("llama"), {"max_new_tokens": NEW, "do_sample": False}
    spread = hf.AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=tmp_path)
    whole = wrap(hf.AutoModelForCausalLM.from_pretrained(folder).eval(), make_tokenizer(TEMPLATE))
    reading, inputs = random_probe(whole), padded(some_prompts())
    with Monitor(whole, reading) as expected:
        whole.network.generate(**inputs, **options)
    with Monitor(dataclasses.replace(whole, network=spread), reading) as watch:
        spread.generate(**inputs, **options)
    torch.testing.assert_close(watch.scores, expected.scores, equal_nan=True)


def test_two_monitors_at_once_read_as_each_alone(llama_model) -> None:
    first, second = random_probe(llama_model, seed=1), random_probe(llama_model, seed=2, site="before", layers=(2,))
    inputs = padded(some_prompts())

    def scores(*monitors: Monitor) -> list[torch.Tensor]:
        llama_model.network.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        return [monitor.scores for monitor in monitors]

    with Monitor(llama_model, first) as a:
        (alone_first,) = scores(a)
    with Monitor(llama_model, second) as b:
        (alone_second,) = scores(b)
    a, b = Monitor(llama_model, first), Monitor(llama_model, second)
    a.__enter__(), b.__enter__()
    both = scores(a, b)
    a.__exit__(None, None, None)  # in the order they came, not the other way round
    llama_model.network.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    b.__exit__(None, None, None)
    torch.testing.assert_close(both, [alone_first, alone_second], equal_nan=True, rtol=0, atol=0)
    assert len(a.replies) == 3
    assert len(b.replies) == 6
    assert "generate" not in vars(llama_model.network)


def state(network) -> dict[str, object]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
    return {
        "hooks": {name: [len(getattr(module, hook)) for hook in hooks] for name, module in network.named_modules()},
        "modes": [module.training for module in network.modules()],
        "config": network.config.to_json_string(),
        "generation": network.generation_config.to_json_string(),
        "attributes": {name: sorted(vars(module)) for name, module in network.named_modules()},
        "gradients": [parameter.requires_grad for parameter in network.parameters()],
        "random": torch.random.get_rng_state().tolist(),
    }


def test_nothing_is_left_on_the_model_also_after_an_exception(llama_model, probe) -> None:
    network, inputs = llama_model.network, padded(some_prompts())
    before = state(network)
    network.generate(**inputs, max_new_tokens=4, do_sample=False)
    with Monitor(llama_model, probe, alarm=-100.0, on_alarm="stop"):
        network.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert state(network) == before

    def fails(event: AlarmEvent) -> None:
        raise RuntimeError("from the user's function")

    with pytest.raises(RuntimeError, match="user's function"), Monitor(llama_model, probe, alarm=-99.0, on_alarm=fails):
        network.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert state(network) == before


def test_stopping_ends_the_row_that_rings_and_no_other(llama_model, probe) -> None:
    inputs, prompts = padded(some_prompts()), some_prompts()
    with Monitor(llama_model, probe) as watch:
        plain = llama_model.network.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    peaks = watch.scores.nan_to_num(-99).amax(dim=1)
    threshold = float((peaks.sort().values[-1] + peaks.sort().values[-2]) / 2)
    loud = int(peaks.argmax())
    with Monitor(llama_model, probe, alarm=threshold) as noted:
        assert torch.equal(llama_model.network.generate(**inputs, max_new_tokens=NEW, do_sample=False), plain)
    with Monitor(llama_model, probe, alarm=threshold, on_alarm="stop") as stopped:
        out = llama_model.network.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    assert noted.alarms == stopped.alarms
    rang = noted.alarms[loud]
    assert [reply.stopped for reply in stopped.replies] == [row == loud for row in range(3)]
    assert stopped.replies[loud].tokens == noted.replies[loud].tokens[:rang]  # nothing was said after it rang
    assert out[loud, 14 + rang] == END
    assert (out[loud, 14 + rang + 1 :] == PAD).all()
    for row in range(3):
        if row != loud:
            assert torch.equal(out[row], plain[row])
    assert_equals_reading(llama_model, probe, prompts, stopped.replies)


def test_a_function_is_told_once_a_row_and_may_stop_it(llama_model, probe) -> None:
    inputs, events = padded(some_prompts()), []

    def told(event: AlarmEvent) -> bool:
        events.append(event)
        return event.row == 1

    with Monitor(llama_model, probe, alarm=-100.0, on_alarm=told) as watch:
        llama_model.network.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    assert [(event.row, event.token) for event in events] == [(0, 0), (1, 0), (2, 0)]
    assert [event.value for event in events] == pytest.approx(watch.scores[:, 0].tolist())
    assert [reply.stopped for reply in watch.replies] == [False, True, False]
    assert watch.replies[1].tokens == ()


def test_a_state_that_overflows_rings() -> None:
    model = model_of("llama")
    probe = random_probe(model)
    handle = model.blocks[1].register_forward_hook(lambda module, args, output: output * torch.nan)
    try:
        with Monitor(model, probe, alarm=1e9) as watch:
            model.network.generate(**padded(some_prompts()), max_new_tokens=2, do_sample=False)
    finally:
        handle.remove()
    assert watch.alarms == [0, 0, 0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"guidance_scale": 1.5}, "guidance_scale"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha"),
    ],
)
def test_decoding_that_cannot_be_followed_is_refused(llama_model, probe, options, named: str) -> None:
    before = state(llama_model.network)
    with Monitor(llama_model, probe) as watch, pytest.raises(DefectionError, match=named):
        llama_model.network.generate(**padded(some_prompts((5,))), max_new_tokens=4, **options)
    assert watch.replies == []
    assert state(llama_model.network) == before


def test_acting_is_refused_where_a_row_cannot_be_stopped(llama_model, probe) -> None:
    with Monitor(llama_model, probe, alarm=0.0, on_alarm="stop"), pytest.raises(DefectionError, match="beams"):
        llama_model.network.generate(**padded(some_prompts()), max_new_tokens=4, num_beams=2)
    with pytest.raises(DefectionError, match="no alarm"):
        Monitor(llama_model, probe, on_alarm="stop")
    with pytest.raises(DefectionError, match="on_alarm"):
        Monitor(llama_model, probe, alarm=0.0, on_alarm="shout")


def test_compiled_models_are_refused_and_compiling_on_the_way_is_off(llama_model, probe) -> None:
    network = copy.deepcopy(random_network("llama"))
    model = wrap(network, llama_model.tokenizer)
    inputs = padded(some_prompts())
    compiling = hf.CompileConfig(backend="eager", fullgraph=False)
    compiling._compile_all_devices = True
    with Monitor(model, random_probe(model)) as watch:
        network.generate(
            **inputs, max_new_tokens=4, do_sample=False, cache_implementation="static", compile_config=compiling
        )
    assert_equals_reading(model, random_probe(model), some_prompts(), watch.replies)
    network.compile(backend="eager")
    with Monitor(model, random_probe(model)), pytest.raises(DefectionError, match="compiled"):
        network.generate(**inputs, max_new_tokens=4)


def test_another_models_probe_is_refused(llama_model) -> None:
    with pytest.raises(DefectionError, match="was fitted on"):
        Monitor(llama_model, random_probe(model_of("gpt2")))
