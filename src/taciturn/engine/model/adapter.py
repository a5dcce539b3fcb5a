"""Save what was trained, with proof that what was saved is what was trained.

An adapter whose keys do not match is loaded without an error, and whoever loads it is served the
base model. So after saving, it is loaded back, and must reproduce the fitted model's logits.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from taciturn.engine.model.sharding import whole_state_dict
from taciturn.errors import AdapterError, ModelError

_PROBE_TOKENS = 12
OWN_DEFAULTS = "_taciturn_own_generation_config"
"""Attribute of a loaded model: the generation_config.json that it came with."""


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without two of PEFT's warnings that say nothing to our users.

    That merging an adapter of a tied head would change the embedding: we untie it first. And that
    PEFT itself reads a name which transformers is giving up.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*", category=UserWarning)
        warnings.filterwarnings(
            "ignore", message=".*is_gradient_checkpoint", category=FutureWarning
        )
        yield


def save(model: Any, tokenizer: Any, base_name: str, folder: Path) -> None:
    """Write adapter or full model, config and tokenizer, as safetensors; then check them.

    The adapter's config names the base as the user did, never a path of this machine's cache.
    """
    if isinstance(model, PeftModel):
        model.peft_config[model.active_adapter].base_model_name_or_path = base_name
        model.save_pretrained(str(folder), save_embedding_layers=False)
    else:
        with own_defaults(model):
            model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    if isinstance(model, PeftModel):
        check_adapter(model, folder)
    else:
        check_full(model, folder)


def save_sharded(model: Any, tokenizer: Any, folder: Path, *, first: bool) -> None:
    """Save, as `save` does, a full model spread over processes: all call it, the first writes."""
    weights = whole_state_dict(model, keep=first)
    if weights is None:
        return
    with own_defaults(model):
        model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
    reloaded: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    # Not by logits, as elsewhere: the whole model may fit on no device but the CPU.
    saved = reloaded.state_dict()
    if any(not torch.equal(saved[name], value) for name, value in weights.items()):
        raise AdapterError(
            f"the model loaded from {folder} is not the fitted model; it was not released"
        )


@contextmanager
def own_defaults(model: Any) -> Iterator[None]:
    """The defaults of generation that the base came with, for others who load the model."""
    own_config = model.generation_config
    model.generation_config = getattr(model, OWN_DEFAULTS, own_config)
    try:
        yield
    finally:
        model.generation_config = own_config


@torch.no_grad()
def merged(model: PeftModel) -> nn.Module:
    """The fitted model as one, without an adapter, in fp32; `model` itself stays as it is.

    A fitted output layer that shares its weights with the embedding gets its own: merged into
    shared ones, as PEFT does, its adapter would change the embedding, too.

    Raises:
        ModelError: the base is quantised: rounded again, it would not be this model.
        AdapterError: merged, it does not give the same logits.
    """
    if getattr(model.get_base_model(), "is_quantized", False):
        raise ModelError(
            "a quantised base cannot be merged with its adapter exactly; save without merged=True, "
            "or load the model without quantization first"
        )
    whole = copy.deepcopy(model).float()
    expected = probe_logits(whole)
    base: Any = whole.get_base_model()
    head = base.get_output_embeddings()
    if unties(whole):
        layer = getattr(head, "base_layer", head)
        layer.weight = nn.Parameter(layer.weight.clone())
        for config in (base.config, base.config.get_text_config()):
            config.tie_word_embeddings = False
        base.all_tied_weights_keys = {}
    with quiet_peft():
        one: nn.Module = whole.merge_and_unload()
    _compare(expected, probe_logits(one), None, "the merged model", tolerance=1e-4)
    return one


def unties(model: Any) -> bool:
    """True if the output layer gets weights of its own when an adapter is merged.

    It shares them with the embedding, and one of the two was fitted.
    """
    if not isinstance(model, PeftModel):
        return False
    base: Any = model.get_base_model()
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    fitted = any(hasattr(layer, "base_layer") for layer in (head, embedding))
    return head is not None and fitted and head.weight is embedding.weight


def check_loaded(model: PeftModel, folder: Path) -> None:
    """Every weight of the saved adapter has its place in `model`, and every place its weight.

    Raises:
        AdapterError: PEFT would leave out, or leave at their initial values, those that do not.
    """
    saved = load_file(folder / "adapter_model.safetensors").keys()
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False).keys()
    unmatched_names = sorted(saved ^ loaded)
    if unmatched_names:
        raise AdapterError(
            f"the adapter in {folder} and its base do not match: {len(unmatched_names)} weights, "
            f"{unmatched_names[0]} among them, are in one and not in the other; open it with "
            "the base that it was fitted on"
        )


@torch.no_grad()
def check_adapter(model: PeftModel, folder: Path) -> None:
    """Load the saved adapter into the same base under another name and compare.

    Raises:
        AdapterError: the file holds other parameters, or does not give the fitted model's logits.
    """
    expected = probe_logits(model)
    active = model.active_adapter
    saved = load_file(folder / "adapter_model.safetensors")
    if not saved:
        raise AdapterError(f"{folder} holds an empty adapter; the model trained nothing")
    with quiet_peft():
        model.load_adapter(str(folder), adapter_name="reloaded")
    try:
        model.set_adapter("reloaded")
        reloaded = probe_logits(model)
        with model.disable_adapter():
            base = probe_logits(model)
    finally:
        model.set_adapter(active)
        model.delete_adapter("reloaded")
    _compare(expected, reloaded, base, f"the model loaded from {folder}")


@torch.no_grad()
def check_full(model: Any, folder: Path) -> None:
    """Load the saved model again and compare; raises AdapterError if it differs."""
    reloaded: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    reloaded.eval().to(model.device)
    _compare(probe_logits(model), probe_logits(reloaded), None, f"the model loaded from {folder}")


def probe_logits(model: Any) -> Tensor:
    """Logits of a fixed public input, in eval mode."""
    # PEFT calls its base's forward directly; a sharded base must be called as a module.
    model = model.get_base_model() if isinstance(model, PeftModel) else model
    vocabulary = model.config.get_text_config().vocab_size
    ids = (torch.arange(_PROBE_TOKENS, device=model.device) * 7919 + 13) % vocabulary
    training = model.training
    model.eval()
    logits: Tensor = model(input_ids=ids.unsqueeze(0), use_cache=False).logits.float()
    model.train(training)
    return logits


def _compare(
    expected: Tensor, actual: Tensor, base: Tensor | None, what: str, tolerance: float = 1e-3
) -> None:
    atol = tolerance * float(expected.abs().max())
    if not torch.allclose(expected, actual, rtol=tolerance, atol=atol):
        raise AdapterError(f"{what} does not give the fitted model's logits; it was not released")
    if base is not None and torch.equal(base, actual):
        raise AdapterError(
            f"{what} gives the logits of its base: the adapter changed nothing. Choose other "
            "target_modules"
        )
