"""A fitted linear probe: a direction a layer, how to scale its scores, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isinf
from pathlib import Path
from typing import NotRequired, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from ...activations import DefectionError, PromptsLike, Residuals, load_prompts
from ...activations.basics.files import Json, write_tensors
from ...activations.basics.headed import read_headed, understood
from ...activations.basics.hub import is_hub_id, snapshot
from ...activations.models.model import IdentityRecord, ModelIdentity
from ...activations.models.sites import AFTER
from ...activations.models.wrap import ModelLike, as_model
from ..statistics.calibration import conformal_threshold, least_clean_prompts
from .guard import Seen, refuse_seen
from .mismatch import refuse_mismatch, refuse_other_model

PROBE_SCHEMA = 1
PROBE_FILE = "probe.safetensors"
"""What a probe is called in a folder of its own, as it is shared."""
ALARM_RATE = 0.01
"""Share of new clean prompts for which a probe's own alarm rings."""
PROBE_HEADER = "defection_probe"


class ContrastRecord(TypedDict, total=False):
    """The texts that a fit saw in full, and what their sets are called; empty where there were none."""

    name: str
    texts: list[Json]


class ProbeHeader(TypedDict):
    """What a probe's file holds beside its tensors."""

    schema_version: int
    layers: tuple[int, ...]
    model: IdentityRecord
    position: str
    site: NotRequired[str]
    contrast: ContrastRecord
    estimator: str
    parameters: Json
    saw: str
    fixed_layers: tuple[int, ...]
    threshold: float | None
    seen: NotRequired[tuple[tuple[str, str], ...] | None]


@dataclass(frozen=True)
class Probe:
    """Directions and the scale of their scores, for the layers they were fitted at.

    Examples:
        >>> probe.score(probe.read(model, prompts)).shape
        torch.Size([4])
    """

    directions: Float[Tensor, "layer d_model"]
    """Unit vectors (zero where nothing could be told apart), pointing from ordinary to defecting."""
    offsets: Float[Tensor, "layer"]
    """Mean projection of the reference rows: clean prompts, or the contrast texts when there were none."""
    scales: Float[Tensor, "layer"]
    """Standard deviation of the same; of clean prompts as directions see them that were fitted without them."""
    layers: tuple[int, ...]
    """The layer each direction is of."""
    model: ModelIdentity
    """Whose residuals it was fitted on; no other model's are scored."""
    position: str
    """Which token it reads, as a rule of `parse_position`."""
    contrast: ContrastRecord
    """The contrast set in full."""
    estimator: str
    """The kind that was fitted."""
    parameters: Json
    """With what settings."""
    saw: str
    """The league (`guard.league`): what the fit was allowed to see."""
    fixed_layers: tuple[int, ...]
    """The layer, or band of layers, whose scores `score` averages; fixed when the probe was made."""
    threshold: float | None = None
    """Band score that at most 1% of new clean prompts exceed (`conformal_threshold`).

    None where there is no alarm: without clean prompts, or with fewer than the 99 that it takes to promise so little.
    """
    site: str = AFTER
    """Where in the block the residuals were read."""
    clean_scores: Float[Tensor, "clean layer"] | None = None
    """Standardised scores of the clean prompts, each by a direction fitted without it: what sets alarms."""
    seen: Seen | None = None
    """The clean prompts, and then the traffic, that the fit was given; None in files that do not tell."""

    def __repr__(self) -> str:
        fixed = f"{self.fixed_layers[0]}" if len(self.fixed_layers) == 1 else f"{list(self.fixed_layers)}"
        asked = f" on {self.contrast['name']!r}" if self.contrast.get("name") else ""
        return f"<Probe {self.estimator}{asked} of {self.model.name!r}: {len(self.layers)} layers, scored at {fixed}>"

    def read(self, model: ModelLike, prompts: PromptsLike, *, what: str = "Reading prompts") -> Residuals:
        """The residuals that the probe scores: at its own layers, site and position.

        Args:
            model: The model it was fitted on, or a network and its tokenizer in a pair.
            prompts: Whatever `load_prompts` takes.
            what: The words before the progress bar.

        Raises:
            DefectionError: For another model or chat template than the probe's, and as `capture` does.
        """
        from ...activations.reading.capture import capture

        model = as_model(model)
        self.refuse_model(model.identity)
        return capture(model, prompts, layers=self.layers, site=self.site, position=self.position, what=what)

    def decision_function(self, residuals: Residuals) -> Float[Tensor, "prompt layer"]:
        """Standardised projections at each of the probe's layers: 0 is an ordinary prompt, higher more defecting.

        Args:
            residuals: Of its model, position and site, at its layers at least.

        Raises:
            DefectionError: For residuals of another model, template, position, site or width, or without its layers.
        """
        self.refuse_mismatch(residuals)
        columns = [residuals.layers.index(layer) for layer in self.layers if layer in residuals.layers]
        if len(columns) != len(self.layers):
            raise DefectionError(f"the probe needs layers {list(self.layers)}; captured were {list(residuals.layers)}")
        values = residuals.values if columns == list(range(residuals.values.shape[1])) else residuals.values[:, columns]
        directions = self.directions.to(values.device)
        if values.shape[-1] != directions.shape[-1]:
            raise DefectionError(
                f"the probe's directions have {directions.shape[-1]} dimensions, the residuals {values.shape[-1]}"
            )
        projections = torch.einsum("pld,ld->pl", values.float(), directions.float())
        return (projections - self.offsets.to(values.device)) / self.scales.to(values.device)

    def score(self, residuals: Residuals, layers: Sequence[int] | None = None) -> Float[Tensor, "prompt"]:
        """The mean of the standardised scores over the fixed layer or band, or over `layers`.

        Args:
            residuals: Of its model, position and site, at its layers at least.
            layers: Those averaged; None: its fixed ones.

        Raises:
            DefectionError: For a layer that it was not fitted at, and as `decision_function` does.
        """
        columns = self.columns(self.fixed_layers if layers is None else layers)
        return self.decision_function(residuals)[:, columns].mean(dim=1)

    def columns(self, layers: Sequence[int]) -> list[int]:
        """Where its tensors hold some of its layers.

        Args:
            layers: Numbers of layers.

        Raises:
            DefectionError: For a layer that it was not fitted at.
        """
        if missing := [layer for layer in layers if layer not in self.layers]:
            raise DefectionError(f"the probe was not fitted at layer {missing[0]}; it has layers {list(self.layers)}")
        return [self.layers.index(layer) for layer in layers]

    def at(self, layers: Sequence[int]) -> Probe:
        """The same probe at some of its layers alone, which become its fixed ones; for reading no more than is needed.

        The threshold, which belongs to the layers fixed before, goes where they change.

        Args:
            layers: Some of its own.

        Raises:
            DefectionError: For a layer that the probe was not fitted at.
        """
        columns = self.columns(layers)
        return replace(
            self,
            directions=self.directions[columns],
            offsets=self.offsets[columns],
            scales=self.scales[columns],
            clean_scores=None if self.clean_scores is None else self.clean_scores[:, columns],
            layers=tuple(layers),
            fixed_layers=tuple(layers),
            threshold=self.threshold if tuple(layers) == self.fixed_layers else None,
        )

    def refuse_mismatch(self, residuals: Residuals) -> None:
        """Whether residuals are what the probe reads.

        Args:
            residuals: Any.

        Raises:
            DefectionError: Saying which of model, chat template, position and site differs.
        """
        refuse_mismatch(self.model, self.position, self.site, residuals)

    def refuse_model(self, model: ModelIdentity) -> None:
        """Whether a model is the one that the probe reads.

        Args:
            model: Who it is.

        Raises:
            DefectionError: When the probe was fitted on another one, or with another chat template.
        """
        refuse_other_model(self.model, model)

    def with_threshold(self, clean: Residuals, false_positive_rate: float = ALARM_RATE) -> Probe:
        """The same probe with the band-score threshold that at most this share of new clean prompts exceeds.

        Args:
            clean: Residuals of ordinary prompts that its fit has not seen.
            false_positive_rate: The share of new ones that may ring.

        Raises:
            DefectionError: Naming the first of them that the probe was fitted with, or when they are too few to
                promise so little.
        """
        self.refuse_seen(clean.prompts)
        threshold = float(conformal_threshold(self.score(clean), false_positive_rate))
        if isinf(threshold):
            raise DefectionError(
                f"{len(clean)} clean prompts cannot promise that at most {false_positive_rate:g} of new ones ring: "
                f"that takes {least_clean_prompts(false_positive_rate)}; give more, or allow more"
            )
        return replace(self, threshold=threshold)

    def refuse_seen(self, prompts: PromptsLike) -> None:
        """Whether prompts may set a threshold: one that the probe was fitted with calibrates nothing.

        Args:
            prompts: Whatever `load_prompts` takes.

        Raises:
            DefectionError: Naming the first that the probe was fitted with.
        """
        refuse_seen(load_prompts(prompts), self.seen)

    def clean_band(self, layers: Sequence[int] | None = None) -> Float[Tensor, "clean"] | None:
        """What `score` would give of the fit's own clean prompts, had it not seen them; None where that is not known.

        Args:
            layers: Those averaged; None: its fixed ones.

        Raises:
            DefectionError: For a layer that the probe was not fitted at.
        """
        columns = self.columns(self.fixed_layers if layers is None else layers)
        return None if self.clean_scores is None else self.clean_scores[:, columns].mean(dim=1)

    def save(self, path: str | Path) -> None:
        """One safetensors file: the tensors, and everything else as JSON in its header; `load_probe` reads it.

        Args:
            path: Of the file; folders on the way are made.

        Raises:
            DefectionError: When the file cannot be written.
        """
        header, tensors = self.to_parts()
        write_tensors(Path(path), tensors, {PROBE_HEADER: json.dumps(header)})

    def to_parts(self) -> tuple[ProbeHeader, dict[str, Tensor]]:
        """What a file holds: JSON, and tensors by name."""
        header: ProbeHeader = {
            "schema_version": PROBE_SCHEMA,
            "layers": self.layers,
            "model": self.model.to_json(),
            "position": self.position,
            "site": self.site,
            "contrast": self.contrast,
            "estimator": self.estimator,
            "parameters": self.parameters,
            "saw": self.saw,
            "fixed_layers": self.fixed_layers,
            "threshold": self.threshold,
            "seen": self.seen,
        }
        tensors = {"directions": self.directions, "offsets": self.offsets, "scales": self.scales}
        if self.clean_scores is not None:
            tensors["clean_scores"] = self.clean_scores
        return header, tensors

    @classmethod
    def from_parts(cls, header: ProbeHeader, tensors: Mapping[str, Tensor]) -> Probe:
        """The probe of which `to_parts` told.

        Args:
            header: What a file's header holds.
            tensors: Its tensors, by name.

        Raises:
            DefectionError: Where layers and tensors do not fit.
            KeyError: Where something is missing.
        """
        layers, fixed = header["layers"], header["fixed_layers"]
        vectors = {name: tensors[name] for name in ("directions", "offsets", "scales")}
        clean = tensors.get("clean_scores")
        shapes = [(len(layers), vectors["directions"].shape[-1]), (len(layers),), (len(layers),)]
        fits = [tuple(tensor.shape) for tensor in vectors.values()] == shapes
        fits = fits and (clean is None or (clean.ndim == 2 and clean.shape[1] == len(layers)))
        floating = all(tensor.is_floating_point() for tensor in tensors.values())
        if not (fits and floating and fixed and set(fixed) <= set(layers) and len(set(layers)) == len(layers)):
            raise DefectionError("its layers do not fit its tensors")
        return cls(
            **vectors,
            clean_scores=clean,
            layers=layers,
            model=ModelIdentity.from_json(header["model"]),
            position=header["position"],
            site=header.get("site", AFTER),
            contrast=header["contrast"],
            estimator=header["estimator"],
            parameters=header["parameters"],
            saw=header["saw"],
            fixed_layers=fixed,
            threshold=header["threshold"],
            seen=header.get("seen"),
        )


def load_probe(path: str | Path) -> Probe:
    """Read a probe.

    Args:
        path: A file, a folder that holds `probe.safetensors`, or a repository of the hub (`user/name`, with a revision
            `user/name@v2`), of which only safetensors and JSON are fetched.

    Raises:
        DefectionError: When it is missing, damaged or not a probe.

    Examples:
        >>> probe.save(folder / "probe.safetensors")
        >>> load_probe(folder / "probe.safetensors")
        <Probe mean-difference on 'six' of 'in memory': 4 layers, scored at 2>
    """
    path = snapshot(str(path), ("*.safetensors", "*.json")) if is_hub_id(path) else Path(path)
    path = path / PROBE_FILE if path.is_dir() else path
    header, tensors = read_headed(path, PROBE_HEADER, ProbeHeader, PROBE_SCHEMA, "probe")
    with understood(path, "probe"):
        return Probe.from_parts(header, tensors)
