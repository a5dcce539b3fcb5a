"""A fitted model as one GGUF file, written by the `gguf` package and read back before release.

What is read back goes into the model itself, weight by weight, and gives logits that are compared
with the fitted model's. Weights in f32 give the same up to rounding. Those in f16 or q8_0 are
rounded on purpose: each weight is then the nearest that its format can say, and the logits are
within `comparison.LIMITS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from torch import Tensor

from taciturn._version import __version__
from taciturn.certificate.derivation import Comparison, Weights
from taciturn.engine.model.adapter import probe_logits
from taciturn.engine.model.load import LoadedModel
from taciturn.errors import AdapterError, ModelError
from taciturn.local.export.architectures import (
    Array,
    Description,
    Place,
    check_head,
    describe,
    places,
    text_model,
)
from taciturn.local.export.comparison import compare
from taciturn.local.export.vocabulary import Vocabulary, vocabulary

_TYPES: dict[Weights, tuple[Kind, gguf.LlamaFileType]] = {
    "f32": (Kind.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Kind.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (Kind.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_BLOCK = 32
_LARGEST_F16 = 65504.0


@dataclass(frozen=True, slots=True)
class Plan:
    """Contents of a file, known before anything is written.

    Attributes:
        description: of the model.
        words: of its tokenizer.
    """

    description: Description
    words: Vocabulary

    @property
    def notes(self) -> list[str]:
        """Return the differences that whoever serves the model has to know."""
        return [*self.description.notes, *self.words.notes]


def make_plan(base: LoadedModel, *, untied: bool) -> Plan:
    """Return what the file of a model fitted on `base` will say.

    Args:
        untied: its output layer will have weights of its own, and that of the base has not.

    Raises:
        ModelError: llama.cpp does not know the architecture or the tokenizer, or would compute
            them otherwise.
    """
    model: Any = text_model(base.model)
    rows = len(model.get_input_embeddings().weight)
    description = describe(model.config, rows)
    check_head(model, description, untied=untied)
    own = model.generation_config.eos_token_id
    ends = [] if own is None else [own] if isinstance(own, int) else list(own)
    return Plan(description, vocabulary(base.tokenizer, rows, ends))


def write(
    path: Path, plan: Plan, model: Any, weights: Weights, about: Mapping[str, str | float]
) -> Comparison:
    """Write a GGUF file, read it back into `model`, and compare the logits.

    Args:
        model: in fp32; its weights are those of the file afterwards.
        about: of the guarantee; goes into the file's metadata below "taciturn.".

    Raises:
        AdapterError: what was read back is another model.
        ModelError: llama.cpp has no place for a weight, or f16 no room for it.
    """
    model = text_model(model)
    expected = probe_logits(model)
    parameters = places(model, plan.description)
    _write(path, model, parameters, plan, weights, about)
    _read_back(path, model, parameters, plan.description)
    return compare(expected, probe_logits(model), weights, path.name)


def _write(
    path: Path,
    model: Any,
    parameters: list[Place],
    plan: Plan,
    weights: Weights,
    about: Mapping[str, str | float],
) -> None:
    """Write metadata, then one tensor after another: no second copy of the model is in memory."""
    description = plan.description
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[description.architecture])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(_TYPES[weights][1])
    for name, value in (*description.fields, *plan.words.fields):
        getattr(writer, name)(value)
    _add_origin(writer, about)
    for name, array, kind in _arrays(model, parameters, description, weights):
        writer.add_tensor_info(name, array.shape, array.dtype, array.nbytes, raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, array, _kind in _arrays(model, parameters, description, weights):
            writer.write_tensor_data(array)
    finally:
        writer.close()


def _add_origin(writer: Any, about: Mapping[str, str | float]) -> None:
    base = str(about["base_model"])
    writer.add_name(f"{base.rpartition('/')[2]}, fine-tuned")
    writer.add_description(str(about["policy"]))
    writer.add_tags(["taciturn", str(about["guarantee"])])
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base)
    writer.add_quantized_by(f"taciturn {__version__}")
    for name, value in about.items():
        add = writer.add_string if isinstance(value, str) else writer.add_float64
        add(f"taciturn.{name}", value)


def _arrays(
    model: Any, parameters: list[Place], description: Description, weights: Weights
) -> Iterator[tuple[str, Array, Kind]]:
    """Yield each tensor as the file keeps it: its name, its bytes or numbers, and their kind."""
    for name, array in description.tensors.items():
        yield name, array, Kind.F32
    for place in parameters:
        array = _numbers(model.get_parameter(place.parameter))
        array = np.ascontiguousarray(place.layout.store(array))
        kind = _kind(place.tensor, array, weights)
        if kind == Kind.F16 and float(np.abs(array).max()) > _LARGEST_F16:
            raise ModelError(
                f"{place.parameter} has a weight of {np.abs(array).max():.3g}, and f16 ends at "
                f"{_LARGEST_F16:g}; export it merged"
            )
        yield place.tensor, gguf.quants.quantize(array, kind), kind


def _numbers(parameter: Tensor) -> Array:
    array: Array = parameter.detach().to("cpu", torch.float32).numpy()
    return array


def _kind(tensor: str, array: Array, weights: Weights) -> Kind:
    """Return how a tensor is kept, as llama.cpp's own converter does."""
    kind = _TYPES[weights][0]
    if array.ndim == 1 or tensor.endswith("_norm.weight") or tensor == "position_embd.weight":
        return Kind.F32
    # A block does not go over the end of a row.
    return Kind.F16 if kind == Kind.Q8_0 and array.shape[-1] % _BLOCK else kind


@torch.no_grad()
def _read_back(path: Path, model: Any, parameters: list[Place], description: Description) -> None:
    """Put the file's weights into the model; raises AdapterError where one is not what it was."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    names = {*description.tensors, *(place.tensor for place in parameters)}
    if set(tensors) != names:
        raise AdapterError(
            f"{path.name} lacks tensors or has others: {sorted(set(tensors) ^ names)}"
        )
    for place in parameters:
        parameter, tensor = model.get_parameter(place.parameter), tensors[place.tensor]
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        array = array.reshape(tuple(int(size) for size in reversed(tensor.shape)))
        _check_rounding(place, place.layout.store(_numbers(parameter)), array, tensor.tensor_type)
        parameter.copy_(torch.from_numpy(place.layout.restore(array).copy()))


def _check_rounding(place: Place, original: Array, array: Array, kind: Kind) -> None:
    """Raise AdapterError unless every weight is the nearest that its format can say."""
    error, size = np.abs(array - original), np.abs(original)
    if kind == Kind.Q8_0:
        # Half a step, of 1/127 of the block's largest, which itself is rounded to f16.
        blocks = (-1, _BLOCK)
        limit = size.reshape(blocks).max(-1, keepdims=True) * (0.5 / 127 + 2.0**-11) + 2.0**-20
        error = error.reshape(blocks)
    elif kind == Kind.F16:
        limit = size * 2.0**-11 + 2.0**-25
    else:
        limit = np.zeros_like(size)
    if not bool((error <= limit).all()):
        raise AdapterError(f"{place.parameter} was not kept as it was; nothing was released")
