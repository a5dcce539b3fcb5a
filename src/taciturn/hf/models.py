"""The base of a DPTrainer: a name, or a model that is in memory and the same as its files.

A report names the base and the digests of its files, and whoever loads the adapter takes them. So a
model that was changed in memory is refused: it would be described as another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from taciturn.engine.model.load import LoadedModel, adopt, choose_device, load_base
from taciturn.errors import ModelError, SpecError
from taciturn.spec import PerformanceSpec

_SAVE = "save it with model.save_pretrained(FOLDER), and load it from there"
# Of LoraConfig: what is honoured, and what does not change what is trained or is set by PEFT.
_HONOURED = frozenset({"r", "lora_alpha", "target_modules"})
_NEUTRAL = frozenset(
    (
        *("base_model_name_or_path", "revision", "inference_mode", "task_type", "peft_type"),
        *("peft_version", "auto_mapping", "lora_ga_config", "runtime_config", "eva_config"),
    )
)


@dataclass(frozen=True, slots=True)
class Adapter:
    """Shape of the adapter that somebody has asked PEFT for."""

    r: int
    alpha: float
    target_modules: tuple[str, ...] | None


def loaded_base(
    model: Any, processing_class: Any, performance: PerformanceSpec
) -> tuple[LoadedModel, Adapter | None]:
    """Return the base that is to be fitted, and the adapter that came with it, if any.

    Args:
        model: hub id or folder, a causal language model, or a PeftModel that was not trained.

    Raises:
        ModelError: it is another kind of model, its adapter was trained, or it is not its files.
        SpecError: the adapter has options that cannot be honoured.
    """
    if isinstance(model, str):
        base = load_base(model, performance)
        if processing_class is None:
            return base, None
        device = choose_device(performance)
        return adopt(model, base.model, _tokenizer(processing_class), device), None
    adapter = None
    if isinstance(model, PeftModel):
        _check_untrained(model)
        adapter = adapter_of(model.peft_config[model.active_adapter])
        model = model.unload()
    name = str(getattr(getattr(model, "config", None), "_name_or_path", ""))
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "get_output_embeddings"):
        raise ModelError(
            f"model is {type(model).__name__}; give a causal language model of transformers, its "
            "name, or a PeftModel of one"
        )
    if not name:
        raise ModelError(f"the model was made in memory, and no report could name it; {_SAVE}")
    _check_same(model, name)
    if processing_class is None:
        processing_class = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if performance.dtype is not None:
        model.to(torch.bfloat16 if performance.dtype == "bfloat16" else torch.float32)
    return adopt(name, model, _tokenizer(processing_class), choose_device(performance)), adapter


def adapter_of(config: Any) -> Adapter:
    """Return the shape that a LoraConfig asks for; raises SpecError for what else it asks for."""
    if not isinstance(config, LoraConfig):
        raise SpecError(
            f"the adapter is a {type(config).__name__}; give a LoraConfig, or leave it to "
            "PrivacyArguments(method='auto')"
        )
    default = LoraConfig()
    for name, value in config.to_dict().items():
        if name in _HONOURED or name in _NEUTRAL or (name == "exclude_modules" and not value):
            continue
        if value and value != default.to_dict().get(name):
            raise SpecError(
                f"LoraConfig {name}={value!r:.100} cannot be honoured: per-unit gradients are "
                "verified for plain LoRA, without dropout; leave it out"
            )
    targets: Any = config.target_modules
    if isinstance(targets, str):
        targets = None if targets == "all-linear" else (targets,)
    modules = None if targets is None else tuple(sorted(targets))
    return Adapter(config.r, float(config.lora_alpha), modules)


def _tokenizer(processing_class: Any) -> Any:
    """Return the tokenizer; raises SpecError for a processor of images and the like."""
    if not hasattr(processing_class, "get_vocab"):
        raise SpecError(
            f"processing_class is {type(processing_class).__name__}, and texts need a tokenizer; "
            "give AutoTokenizer.from_pretrained(...)"
        )
    return processing_class


def _check_untrained(model: PeftModel) -> None:
    """Raise ModelError if the adapter was trained: nobody knows on what."""
    for name, value in model.named_parameters():
        if "lora_B" in name and bool(value.detach().any()):
            raise ModelError(
                "the adapter of the PeftModel was trained already, and no report says on what and "
                "under which guarantee; give the base model, or fit LLM(folder) further, where "
                "taciturn has saved it"
            )


def _check_same(model: Any, name: str) -> None:
    """Raise ModelError unless the model in memory is what its files hold."""
    if getattr(model, "is_quantized", False):
        return  # its weights are made of files, and cannot be trained in place
    try:
        files = AutoModelForCausalLM.from_pretrained(
            name, dtype=model.dtype, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the model says that it is {name}, which cannot be loaded ({type(error).__name__}); "
            f"{_SAVE}"
        ) from error
    own, expected = model.state_dict(), files.state_dict()
    if own.keys() != expected.keys() or any(
        value.shape != expected[key].shape or not torch.equal(value.cpu(), expected[key])
        for key, value in own.items()
    ):
        raise ModelError(
            f"the model in memory is not {name}, which it says that it is: its weights, or another "
            f"head, are others; {_SAVE}"
        )
