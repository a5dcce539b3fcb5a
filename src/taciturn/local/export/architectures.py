"""Architectures that llama.cpp computes as transformers does, and what a GGUF file says of them.

Names of tensors are those of the `gguf` package's own maps. What llama.cpp has fixed in its code,
such as Gemma's pattern of layers, is compared with the model's configuration: a model that would
be computed otherwise is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np
import torch
from gguf import MODEL_ARCH
from numpy.typing import NDArray
from torch import nn
from transformers import Gemma3ForCausalLM

from taciturn.engine.model.load import context_length
from taciturn.errors import ModelError

Array = NDArray[Any]

_FAMILIES: dict[str, MODEL_ARCH] = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gemma": MODEL_ARCH.GEMMA,
    "gemma2": MODEL_ARCH.GEMMA2,
    "gemma3_text": MODEL_ARCH.GEMMA3,
    "phi3": MODEL_ARCH.PHI3,
    "gpt2": MODEL_ARCH.GPT2,
}
_ACTIVATIONS = {"gpt2": "gelu_new", "gemma": "gelu_pytorch_tanh", "gemma2": "gelu_pytorch_tanh"}
_ACTIVATIONS["gemma3_text"] = "gelu_pytorch_tanh"
_GEMMA = ("gemma", "gemma2", "gemma3_text")
# Depths at which llama.cpp takes a model for Gemma's 27B, whose queries are scaled otherwise.
_SCALED_BY_HEADS = {"gemma2": 46, "gemma3_text": 62}
# Layers that llama.cpp reads biases of, besides all of Llama's and GPT-2's.
_BIASES = {"qwen2": ("q_proj", "k_proj", "v_proj")}


@dataclass(frozen=True, slots=True)
class Layout:
    """Way in which a GGUF file keeps a weight, and back."""

    store: Callable[[Array], Array] = lambda weight: weight
    restore: Callable[[Array], Array] = lambda weight: weight


@dataclass(frozen=True, slots=True)
class Place:
    """Place of one of the model's parameters in the file."""

    parameter: str
    tensor: str
    layout: Layout


@dataclass(slots=True)
class Description:
    """Description of a model to llama.cpp.

    Attributes:
        architecture: by the `gguf` package.
        fields: name of a method of its writer, and what to call it with.
        tensors: further ones, which transformers computes from the configuration.
        context_length: longest input that llama.cpp computes as transformers does.
        notes: differences that whoever serves the model has to know.
    """

    architecture: MODEL_ARCH
    fields: list[tuple[str, Any]] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)
    context_length: int = 0
    notes: list[str] = field(default_factory=list)


def describe(config: Any, rows: int) -> Description:
    """Return what a GGUF file has to say of a model with this configuration.

    Args:
        rows: of its embedding.

    Raises:
        ModelError: llama.cpp does not know the architecture, or would compute it otherwise.
    """
    kind = config.model_type
    if kind not in _FAMILIES:
        raise ModelError(
            f"there is no GGUF export of {_name(config)} ({kind}) yet, only of "
            f"{', '.join(sorted(_FAMILIES))}; export it merged"
        )
    activation = _first(config, "hidden_activation", "hidden_act", "activation_function")
    _demand(config, "activation", activation, _ACTIVATIONS.get(kind, "silu"))
    description = Description(_FAMILIES[kind], context_length=context_length(config))
    add = description.fields
    if kind == "gpt2":
        _describe_gpt2(config, add)
    else:
        _describe_decoder(config, description)
    if kind in _GEMMA:
        _describe_gemma(config, add)
    add += [
        ("add_context_length", description.context_length),
        ("add_embedding_length", config.hidden_size),
        ("add_block_count", config.num_hidden_layers),
        ("add_head_count", config.num_attention_heads),
        ("add_vocab_size", rows),
    ]
    return description


def text_model(model: Any) -> Any:
    """Return the part of a model that reads and writes text; the model itself, if that is all."""
    if model.config.model_type != "gemma3":
        return model
    with torch.device("meta"):
        text = Gemma3ForCausalLM(model.config.text_config)
    text.model, text.lm_head = model.model.language_model, model.lm_head
    text.generation_config = model.generation_config
    return text.eval()


def places(model: Any, description: Description) -> list[Place]:
    """Return the place of each parameter of `model`, tied ones once.

    Raises:
        ModelError: llama.cpp has no place for one.
    """
    config = model.config
    names = gguf.get_tensor_name_map(description.architecture, config.num_hidden_layers)
    return [_place(name, config, names) for name, _ in model.named_parameters()]


def check_head(model: nn.Module, description: Description, *, untied: bool) -> None:
    """Refuse an output layer of its own where llama.cpp takes the embedding's weights for it."""
    own = untied or not model.config.tie_word_embeddings  # type: ignore[union-attr]
    if own and gguf.MODEL_TENSOR.OUTPUT not in gguf.MODEL_TENSORS[description.architecture]:
        raise ModelError(
            f"the output layer of this {_name(model.config)} has weights of its own, and llama.cpp "
            "takes the embedding's for this architecture; export it merged, or fit with "
            "target_modules that leave the output layer out"
        )


def _describe_gpt2(config: Any, add: list[tuple[str, Any]]) -> None:
    _demand(config, "scale_attn_weights", config.scale_attn_weights, True)
    scaled = config.scale_attn_by_inverse_layer_idx
    _demand(config, "scale_attn_by_inverse_layer_idx", scaled, False)
    add += [
        ("add_feed_forward_length", config.n_inner or 4 * config.n_embd),
        ("add_layer_norm_eps", config.layer_norm_epsilon),
    ]


def _describe_decoder(config: Any, description: Description) -> None:
    """Add what all decoders with rotary positions have."""
    width = head_width(config)
    rope = _rope(config)
    rotary = int(width * rope.get("partial_rotary_factor", 1.0))
    if config.model_type != "phi3":
        _demand(config, "partial_rotary_factor", rotary, width)
    description.fields += [
        ("add_feed_forward_length", config.intermediate_size),
        ("add_head_count_kv", config.num_key_value_heads),
        ("add_layer_norm_rms_eps", config.rms_norm_eps),
        ("add_key_length", width),
        ("add_value_length", width),
        ("add_rope_dimension_count", rotary),
        ("add_rope_freq_base", float(rope["rope_theta"])),
    ]
    _describe_rope(config, rope, rotary, description)
    window = _ignored_window(config)
    if window is not None and window < description.context_length:
        description.context_length = window
        description.notes.append(
            f"llama.cpp has no sliding window for this architecture: the file states a context of "
            f"{window} tokens, up to which it computes the same"
        )


def _describe_gemma(config: Any, add: list[tuple[str, Any]]) -> None:
    kind = config.model_type
    if kind == "gemma":
        return
    width = head_width(config)
    by_heads = config.num_hidden_layers == _SCALED_BY_HEADS[kind]
    scalar = config.hidden_size // config.num_attention_heads if by_heads else width
    _demand(config, "query_pre_attn_scalar", config.query_pre_attn_scalar, scalar)
    step = 2 if kind == "gemma2" else 6
    pattern = ["full" if (n + 1) % step == 0 else "sliding" for n in range(len(config.layer_types))]
    types = [name.removesuffix("_attention") for name in config.layer_types]
    _demand(config, "layer_types", types, pattern)
    add.append(("add_sliding_window", config.sliding_window))
    caps = config.attn_logit_softcapping, config.final_logit_softcapping
    if kind == "gemma2":
        if None in caps:
            raise _other(config, "attn_logit_softcapping or final_logit_softcapping", None, "set")
        add.append(("add_attn_logit_softcapping", caps[0]))
        add.append(("add_final_logit_softcapping", caps[1]))
        return
    _demand(config, "attn_logit_softcapping", caps[0], None)
    _demand(config, "final_logit_softcapping", caps[1], None)
    _demand(config, "use_bidirectional_attention", config.use_bidirectional_attention, False)
    local = config.rope_parameters["sliding_attention"]
    _demand(config, "rope_type of sliding layers", local.get("rope_type"), "default")
    _demand(config, "rope_theta of sliding layers", local["rope_theta"], 10000.0)


def _describe_rope(
    config: Any, rope: Mapping[str, Any], rotary: int, description: Description
) -> None:
    """Add how positions beyond the first training's are scaled."""
    kind, add = rope.get("rope_type", "default"), description.fields
    if kind == "default":
        return
    if kind == "linear":
        add.append(("add_rope_scaling_type", gguf.RopeScalingType.LINEAR))
        add.append(("add_rope_scaling_factor", float(rope["factor"])))
    elif kind == "llama3" and description.architecture == MODEL_ARCH.LLAMA:
        description.tensors["rope_freqs.weight"] = _llama3_factors(rope, rotary)
    elif kind == "yarn" and not any(rope.get(name) for name in _YARN_VARIANTS):
        add.append(("add_rope_scaling_type", gguf.RopeScalingType.YARN))
        add.append(("add_rope_scaling_factor", float(rope["factor"])))
        add.append(("add_rope_scaling_orig_ctx_len", _original_context(config, rope)))
        if "beta_fast" in rope:
            add.append(("add_rope_scaling_yarn_beta_fast", float(rope["beta_fast"])))
        if "beta_slow" in rope:
            add.append(("add_rope_scaling_yarn_beta_slow", float(rope["beta_slow"])))
    elif kind == "longrope" and description.architecture == MODEL_ARCH.PHI3:
        _describe_longrope(config, rope, description)
    else:
        raise _other(config, "rope scaling", kind, "linear, llama3 (Llama), yarn or longrope (Phi)")


_YARN_VARIANTS = ("attention_factor", "mscale", "mscale_all_dim")


def _describe_longrope(config: Any, rope: Mapping[str, Any], description: Description) -> None:
    original = _original_context(config, rope)
    scale = config.max_position_embeddings / original
    factor = 1.0 if scale <= 1 else math.sqrt(1 + math.log(scale) / math.log(original))
    _demand(config, "attention_factor", rope.get("attention_factor") or factor, factor)
    description.fields.append(("add_rope_scaling_orig_ctx_len", original))
    description.fields.append(("add_rope_scaling_attn_factors", factor))
    description.notes.append(
        f"started with a context of more than {original} tokens, llama.cpp takes the positions of "
        "long texts for all, and transformers for those that are longer: start it with "
        f"{original} for texts up to that"
    )
    for name in ("long", "short"):
        factors = np.asarray(rope[f"{name}_factor"], dtype=np.float32)
        description.tensors[f"rope_factors_{name}.weight"] = factors


def _original_context(config: Any, rope: Mapping[str, Any]) -> int:
    original = rope.get("original_max_position_embeddings")
    original = original or getattr(config, "original_max_position_embeddings", None)
    return int(original or config.max_position_embeddings)


def _llama3_factors(rope: Mapping[str, Any], rotary: int) -> Array:
    """Return what llama.cpp divides each frequency by: 1 for short waves, the factor for long."""
    original = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    exponents: Array = np.arange(0, rotary, 2, dtype=np.float64) / rotary
    waves = 2 * np.pi * rope["rope_theta"] ** exponents
    smooth = np.clip((original / waves - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / rope["factor"] + smooth), dtype=np.float32)


def head_width(config: Any) -> int:
    """Return the width of an attention head."""
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)


def _rope(config: Any) -> Mapping[str, Any]:
    """Return the rotary settings of layers that see the whole text."""
    rope: Mapping[str, Any] = config.rope_parameters
    full: Mapping[str, Any] = rope.get("full_attention", rope)
    return full


def _ignored_window(config: Any) -> int | None:
    """Return the sliding window of some layer, where llama.cpp has none."""
    types = getattr(config, "layer_types", None)
    if config.model_type in _GEMMA or (types is not None and "sliding_attention" not in types):
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


def _place(parameter: str, config: Any, names: Any) -> Place:
    module, _, suffix = parameter.rpartition(".")
    tensor = names.get_name(module)
    is_bias = suffix == "bias" and config.model_type not in ("llama", "mistral", "gpt2")
    unread = is_bias and not module.endswith(_BIASES.get(config.model_type, ()))
    if tensor is None or suffix not in ("weight", "bias") or unread:
        raise ModelError(
            f"llama.cpp has no place for {parameter} of this {_name(config)}; export it merged"
        )
    return Place(parameter, f"{tensor}.{suffix}", _layout(module, suffix, config))


def _layout(module: str, suffix: str, config: Any) -> Layout:
    kind = config.model_type
    if kind in _GEMMA and module.endswith("norm"):
        return Layout(lambda weight: weight + 1, lambda weight: weight - 1)
    if kind == "gpt2" and suffix == "weight" and module.endswith((".c_attn", ".c_proj", ".c_fc")):
        return Layout(_transposed, _transposed)
    if kind in ("llama", "mistral") and module.endswith((".q_proj", ".k_proj")):
        keys = module.endswith(".k_proj")
        heads = config.num_key_value_heads if keys else config.num_attention_heads
        return Layout(
            lambda weight: _swapped(weight, (heads, 2, -1)),
            lambda weight: _swapped(weight, (heads, -1, 2)),
        )
    return Layout()


def _transposed(weight: Array) -> Array:
    return np.ascontiguousarray(weight.T)


def _swapped(weight: Array, rows: tuple[int, int, int]) -> Array:
    """Reorder the rows of each head: halves against pairs of rotated dimensions."""
    parts = weight.reshape(*rows, *weight.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2)).reshape(weight.shape)


def _first(config: Any, *names: str) -> Any:
    values: Iterator[Any] = (getattr(config, name, None) for name in names)
    return next((value for value in values if value is not None), None)


def _name(config: Any) -> str:
    return str((config.architectures or [config.model_type])[0])


def _demand(config: Any, name: str, value: Any, expected: Any) -> None:
    """Raise ModelError unless a setting is what llama.cpp computes with."""
    same = value == expected
    if isinstance(value, float) and isinstance(expected, int | float):
        same = math.isclose(value, expected, rel_tol=1e-6)
    if not same:
        raise _other(config, name, value, expected)


def _other(config: Any, name: str, value: Any, expected: Any) -> ModelError:
    return ModelError(
        f"{name}={value} of this {_name(config)} is not what llama.cpp computes with "
        f"({expected}), so a GGUF file would be another model; export it merged"
    )
