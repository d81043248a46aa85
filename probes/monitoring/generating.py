"""A call of `generate` that monitors listen to: what it asks for, what cannot be followed, and where they are called.

`network.generate` is replaced on that one object while a monitor is on, and given back after. A logits processor is
where a token is about to be chosen: the pass has run, nothing is said yet. It hands the probabilities on untouched,
unless a row is to end there.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from ...activations.basics.errors import DefectionError

if TYPE_CHECKING:
    from transformers.utils import ModelOutput


class Listener(Protocol):
    """What a monitor does in the course of a call."""

    def begins(self, call: Call) -> AbstractContextManager[None]:
        """The call is about to begin; a context manager around it.

        Args:
            call: What `generate` was called with.

        Raises:
            DefectionError: For a call that it cannot follow.
        """
        ...

    def reads(self, columns: Tensor | None, prefilling: bool) -> None:
        """A forward pass is about to run.

        Args:
            columns: [row] the token that each row is read at; None: its last.
            prefilling: Whether the pass reads the prompt.

        Raises:
            DefectionError: Where the passes so far do not make sense.
        """
        ...

    def has_read(self, here: Tensor | None) -> None:
        """The pass has run.

        Args:
            here: [row] whether its column held a token of the prompt; None: in all rows.
        """
        ...

    def chooses(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """The next token is about to be chosen; gives the logits, changed or not.

        Args:
            tokens: [row, token] so far.
            logits: [row, vocabulary] for the next one.

        Raises:
            DefectionError: Where no pass has run for the token.
        """
        ...

    def ends(self, call: Call, sequences: Tensor, beams: Tensor | None) -> None:
        """The call has ended well.

        Args:
            call: What `generate` was called with.
            sequences: [row, token] prompt and reply.
            beams: [row, token] which beam each token of the reply came from; None: there were no beams.
        """
        ...


class Call:
    """The arguments of one call of `generate`."""

    def __init__(
        self,
        network: PreTrainedModel,
        original: Callable[..., object],
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> None:
        bound = inspect.signature(original).bind(*args, **kwargs).arguments
        self.network = network
        self.arguments = {**{k: v for k, v in bound.items() if k != "kwargs"}, **bound.get("kwargs", {})}
        self._refuse_what_cannot_be_followed()

    def setting(self, name: str) -> Any:
        """A setting as the call, its generation config or the model's has it; None where none does."""
        given = self.arguments.get(name)
        for config in (self.arguments.get("generation_config"), self.network.generation_config):
            if given is None:
                given = getattr(config, name, None)
        return given

    @property
    def ends(self) -> list[int]:
        """Ids at which a row ends."""
        found = self.setting("eos_token_id")
        if found is None:
            return []
        listed = found.tolist() if isinstance(found, Tensor) else found
        return [int(token) for token in (listed if isinstance(listed, list | tuple) else [listed])]

    @property
    def beams(self) -> int:
        """How many beams a row has."""
        return int(self.setting("num_beams") or 1)

    @property
    def prompt_length(self) -> int:
        """Columns of the prompt, padding included; 1 where the model begins with its own BOS."""
        for name in ("inputs", "input_ids", "inputs_embeds"):
            given = self.arguments.get(name)
            if given is not None:
                return int(given.shape[1])
        return 1

    @property
    def max_new_tokens(self) -> int:
        """The longest reply that the call allows."""
        if (most := self.setting("max_new_tokens")) is not None:
            return int(most)
        whole = self.setting("max_length")
        return 20 if whole is None else int(whole) - self.prompt_length  # 20 is Hugging Face's own default

    def _refuse_what_cannot_be_followed(self) -> None:
        reasons = {
            "assistant_model": "an assistant model proposes tokens that are taken back",
            "prompt_lookup_num_tokens": "tokens looked up in the prompt may be taken back",
            "custom_generate": "custom_generate decodes by rules of its own",
            "penalty_alpha": "contrastive search looks at candidates that are not said",
            "dola_layers": "DoLa decodes by code that is fetched",
            "constraints": "constrained beams are decoded by code that is fetched",
        }
        for name, reason in reasons.items():
            if self.setting(name) not in (None, False):
                raise DefectionError(f"a monitor cannot follow generate with {name}: {reason}; leave it out")
        if self.setting("guidance_scale") not in (None, 1, 1.0):
            raise DefectionError(
                "a monitor cannot follow generate with guidance_scale: the model runs on a second prompt too; leave "
                "it out"
            )
        if (self.setting("num_beam_groups") or 1) > 1:
            raise DefectionError("a monitor cannot follow groups of beams; leave num_beam_groups out")
        if self.arguments.get("cache_implementation") == "paged" or self.setting("cache_implementation") == "paged":
            raise DefectionError("a monitor cannot follow continuous batching; choose another cache_implementation")
        compiled = [name for name, module in self.network.named_modules() if _is_compiled(module)]
        if compiled:
            raise DefectionError(
                f"{compiled[0] or type(self.network).__name__} is compiled, and compiled code runs without hooks; "
                "watch the model before torch.compile"
            )


def _is_compiled(module: nn.Module) -> bool:
    if getattr(module, "_compiled_call_impl", None) is not None:
        return True
    return hasattr(vars(module).get("forward"), "_torchdynamo_orig_callable")


class _Prefill:
    """Which columns of each pass over the prompt hold the last token of each row, whatever its padding or chunks."""

    def __init__(self, call: Call) -> None:
        self.mask: Tensor | None = call.arguments.get("attention_mask")
        past = call.arguments.get("past_key_values")
        self.done = int(past.get_seq_length()) if past is not None else 0
        self.pad = call.setting("pad_token_id")
        self.here: Tensor | None = None

    def columns(self, kwargs: dict[str, Any]) -> Tensor | None:
        """Columns of the coming pass; None where each row's is its last. Leaves in `here` which rows they hold for."""
        tokens = kwargs.get("input_ids")
        tokens = kwargs["inputs_embeds"] if tokens is None else tokens
        rows, width = tokens.shape[:2]
        given = kwargs.get("attention_mask")
        mask = given if isinstance(given, Tensor) and given.ndim == 2 else None
        if mask is not None:
            mask = mask[:, -width:]
        elif self.mask is not None:
            mask = self.mask[:, self.done : self.done + width]
            mask = mask.repeat_interleave(rows // len(mask), dim=0)
        elif given is not None and isinstance(self.pad, int) and tokens.ndim == 2 and (tokens[:, -1] == self.pad).any():
            raise DefectionError("these prompts end in padding: give generate their attention_mask")
        self.done += width
        self.here = None
        if mask is None:
            return None
        places = torch.arange(1, width + 1, device=mask.device)
        last = (mask.bool() * places).amax(dim=1)
        self.here = last > 0
        return (last - 1).clamp_min(0)


class Watching:
    """`network.generate` while monitors are on."""

    def __init__(self, network: PreTrainedModel) -> None:
        self.network = network
        self.before = vars(network).get("generate")
        self.listeners: list[Listener] = []
        self.lock = threading.RLock()
        original = network.generate

        @functools.wraps(original)
        def generate(*args: object, **kwargs: object) -> Tensor | ModelOutput:
            with self.lock:  # hooks see one call at a time
                return self._call(original, args, kwargs)

        generate.watching = self  # type: ignore[attr-defined]
        self.replacement = generate

    def _call(
        self, original: Callable[..., Tensor | ModelOutput], args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> Tensor | ModelOutput:
        call = Call(self.network, original, args, kwargs)
        arguments = dict(call.arguments)
        step = _Choosing(call, list(self.listeners))
        arguments["logits_processor"] = LogitsProcessorList([*(arguments.get("logits_processor") or []), step])
        plain = call.beams > 1 and not call.setting("return_dict_in_generate")
        if plain:  # which beam said what stands only there
            arguments["return_dict_in_generate"] = True
        # Code that is compiled on the way, as with a static cache on a GPU, would keep hooks, or run without.
        arguments.setdefault("disable_compile", True)
        with ExitStack() as stack:
            for listener in step.listeners:
                stack.enter_context(listener.begins(call))
            stack.enter_context(step.attached(self.network))
            output = original(**arguments)
        sequences = output if isinstance(output, Tensor) else output.sequences
        for listener in step.listeners:
            listener.ends(call, sequences, getattr(output, "beam_indices", None))
        return sequences if plain else output


class _Choosing(LogitsProcessor):  # type: ignore[misc]
    """Between a pass and the choice of a token."""

    def __init__(self, call: Call, listeners: list[Listener]) -> None:
        self.listeners = listeners
        self.prefill: _Prefill | None = _Prefill(call)

    @contextmanager
    def attached(self, network: PreTrainedModel) -> Iterator[None]:
        """Inside, listeners hear of every forward pass of the network."""

        def before(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, Any]) -> None:
            columns = self.prefill.columns(kwargs) if self.prefill else None
            for listener in self.listeners:
                listener.reads(columns, self.prefill is not None)

        def after(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            for listener in self.listeners:
                listener.has_read(self.prefill.here if self.prefill else None)

        handles = [network.register_forward_pre_hook(before, with_kwargs=True), network.register_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """See `LogitsProcessor`."""
        self.prefill = None
        for listener in self.listeners:
            scores = listener.chooses(input_ids, scores)
        return scores


@contextmanager
def listening(network: PreTrainedModel, listener: Listener) -> Iterator[None]:
    """Inside, every call of `network.generate` is told to the listener; several may listen to one network."""
    watching = getattr(vars(network).get("generate"), "watching", None) or Watching(network)
    if not watching.listeners:
        network.generate = watching.replacement
    watching.listeners.append(listener)
    try:
        yield
    finally:
        watching.listeners.remove(listener)
        if not watching.listeners:
            if watching.before is None:
                del network.generate
            else:
                network.generate = watching.before
