"""A fitted estimator of any kind as one safetensors file: its tensors, and everything else as JSON in the header.

A `Probe` file holds a direction and what vouches for its use on a model; this holds whatever a fit left, so that an
estimator of bare numbers, or one that is no direction, outlives the session as well. Nothing is pickled.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ...activations.basics.errors import DefectionError
from ...activations.basics.files import Json, write_tensors
from ...activations.basics.headed import read_headed, understood
from ...activations.basics.typed import typed
from ...activations.models.model import IdentityRecord, ModelIdentity
from .ensembles import LayerEnsemble
from .estimator import ProbeEstimator
from .fitting import Reference
from .linear import plain_parameters
from .probe import Probe, ProbeHeader
from .registry import KINDS
from .traffic import TrafficVerdict

ESTIMATOR_SCHEMA = 1
WIDEST = 2**16
"""Features that are tried in any case, since a kind may keep fewer numbers than it has of them."""
ESTIMATOR_HEADER = "defection_estimator"
BY_NAME: dict[str, type[ProbeEstimator]] = {kind.name: kind for kind in KINDS} | {LayerEnsemble.name: LayerEnsemble}
Tensors = dict[str, Tensor]


class EstimatorHeader(TypedDict):
    """A fitted estimator but for its tensors: its kind, how it was made, and each fitted attribute."""

    kind: str
    parameters: Json
    fitted: dict[str, Json]


class ReferenceRecord(TypedDict):
    """A `Reference` but for its tensors."""

    model: IdentityRecord
    position: str
    site: str
    layers: tuple[int, ...]


def save_estimator(estimator: ProbeEstimator, path: str | Path) -> None:
    """Write a fitted estimator; DefectionError for one that is not fitted, or whose parameters no file can hold."""
    check_is_fitted(estimator)
    record, tensors = _parts(estimator)
    record = {"schema_version": ESTIMATOR_SCHEMA, **record}
    try:
        header = json.dumps(record, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DefectionError(f"this {estimator.name} probe cannot be saved: {error}") from error
    write_tensors(Path(path), tensors, {ESTIMATOR_HEADER: header})


def load_estimator(path: str | Path) -> ProbeEstimator:
    """A fitted estimator as `ProbeEstimator.save` wrote it, which scores as it did.

    Args:
        path: The safetensors file.

    Raises:
        DefectionError: For a file that is missing, damaged or another.

    Examples:
        >>> from tempfile import mkdtemp
        >>> from defection.probes import MLPProbe
        >>> X, y = np.eye(4), [0, 1, 0, 1]
        >>> probe = MLPProbe(hidden=2).fit(X, y)
        >>> probe.save(path := Path(mkdtemp()) / "mlp.safetensors")
        >>> bool((load_estimator(path).decision_function(X) == probe.decision_function(X)).all())
        True
    """
    path = Path(path)
    record, tensors = read_headed(path, ESTIMATOR_HEADER, EstimatorHeader, ESTIMATOR_SCHEMA, "estimator")
    with understood(path, "estimator"):
        estimator = _restored(record, tensors)
        _try(estimator, sum(tensor.numel() for tensor in tensors.values()))
        return estimator


def _parts(estimator: ProbeEstimator) -> tuple[Json, Tensors]:
    """What JSON holds of it, and its tensors by the names of its attributes."""
    tensors: Tensors = {}
    fitted = {key: value for key, value in vars(estimator).items() if _is_fitted(key)}
    record = {
        "kind": estimator.name,
        "parameters": plain_parameters(estimator),
        "fitted": {key: _kept(value, key, tensors) for key, value in fitted.items()},
    }
    return record, tensors


def _is_fitted(key: str) -> bool:
    """Whether an attribute is one that a fit leaves, by its name."""
    return key.endswith("_") and not key.startswith("_")


def _kept(value: object, name: str, tensors: Tensors) -> Json:
    """A fitted attribute: its kind, and what JSON holds of it."""
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "biuf":
        return {"words": value.tolist()}
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, np.ndarray | np.generic):
        tensors[name] = torch.from_numpy(np.array(value, order="C"))
        return {"array": name}
    if isinstance(value, tuple):
        return {"tuple": list(value)}
    return _kept_object(value, name, tensors) or {"value": value}


def _kept_object(value: object, name: str, tensors: Tensors) -> Json | None:
    own: Tensors = {}
    found: Json | None = None
    if isinstance(value, ProbeEstimator):
        record, own = _parts(value)
        found = {"estimator": record}
    elif isinstance(value, Probe):
        header, own = value.to_parts()
        found = {"probe": header}
    elif isinstance(value, Reference):
        own = {"offsets": value.offsets, "scales": value.scales}
        about = {"position": value.position, "site": value.site, "layers": list(value.layers)}
        found = {"reference": {"model": value.model.to_json(), **about}}
    elif isinstance(value, TrafficVerdict):
        found = {"traffic": asdict(value)}
    tensors.update({f"{name}.{key}": tensor for key, tensor in own.items()})
    return found


def _restored(record: EstimatorHeader, tensors: Tensors) -> ProbeEstimator:
    parameters = {key: _parameter(value) for key, value in record["parameters"].items()}
    estimator = BY_NAME[record["kind"]](**parameters)
    for key, kept in record["fitted"].items():
        if not _is_fitted(key):
            raise DefectionError(f"no fit leaves {key!r}")
        own = {name.removeprefix(f"{key}."): tensor for name, tensor in tensors.items() if name.startswith(f"{key}.")}
        ((kind, value),) = kept.items()
        setattr(estimator, key, _made(kind, value, own) if kind in OBJECTS else _plain(kind, value, tensors))
    return estimator


OBJECTS = ("estimator", "probe", "reference", "traffic")


def _plain(kind: str, value: Any, tensors: Tensors) -> object:
    if kind in ("tensor", "array"):
        return tensors[value] if kind == "tensor" else tensors[value].numpy()
    if kind == "words":
        return np.asarray(value)
    return tuple(value) if kind == "tuple" else value


def _made(kind: str, value: object, own: Tensors) -> object:
    if kind == "estimator":
        return _restored(typed(value, EstimatorHeader, kind), own)
    if kind == "probe":
        return Probe.from_parts(typed(value, ProbeHeader, kind), own)
    if kind == "traffic":
        return typed(value, TrafficVerdict, kind)
    about: ReferenceRecord = typed(value, ReferenceRecord, kind)
    model = ModelIdentity.from_json(about["model"])
    if not own["offsets"].shape == own["scales"].shape == (len(about["layers"]),):
        raise DefectionError("its layers do not fit its tensors")
    return Reference(model, about["position"], about["site"], about["layers"], own["offsets"], own["scales"])


def _try(estimator: ProbeEstimator, numbers: int) -> None:
    """Score some rows of zeros, as whoever asked for the estimator will score theirs."""
    features, layers = typed(
        [estimator.n_features_in_, estimator.n_layers_],
        tuple[int, int | None],
        "its fit",
    )
    shape = (5, layers or 1, features)
    if not (0 < shape[1] <= numbers and 0 < features <= max(numbers, WIDEST)):
        raise DefectionError("its numbers are fewer than it has features or layers")
    found = estimator._scores(torch.zeros(()).expand(shape))
    vouching = {"probe_": Probe, "reference_": Reference}
    strange = [name for name, kind in vouching.items() if not isinstance(getattr(estimator, name, None), kind | None)]
    if found.shape not in (shape[:2], (shape[0], 1)) or len(estimator.classes_) != 2 or strange:
        raise DefectionError("its numbers do not fit one another")


def _parameter(value: object) -> object:
    if isinstance(value, dict) and value.get("name") in BY_NAME:
        inner = {key: _parameter(each) for key, each in value.items() if key != "name"}
        return BY_NAME[value["name"]](**inner)
    return tuple(value) if isinstance(value, list) else value
