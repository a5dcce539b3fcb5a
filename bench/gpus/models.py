"""Models of random weights in real shapes, made on the device, and what is trained of them."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from gpus.items import Outcome, SkippedError, said
from taciturn.engine.model import load, lora
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.per_example import trainable_parameters
from taciturn.planning.plan import AdapterPlan

Method = Literal["lora", "full", "nf4"]
"""nf4: LoRA on a base in 4 bits."""

ARCHITECTURES = ("llama", "qwen3", "gemma3", "mixtral")
MIXTURES = ("mixtral",)
RANK = 16
_SEED = 20


@dataclass(frozen=True, slots=True)
class Place:
    """Where everything runs, and whether shapes are scaled down.

    Attributes:
        device: torch's name of it.
        tiny: so small that a slow core shows in seconds that all of it works.
        brief: fewer shapes and repetitions.
    """

    device: str
    tiny: bool
    brief: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU."""
        return self.device.startswith("cuda")

    def half(self) -> torch.dtype:
        """The type in which products are fast."""
        return torch.bfloat16


def _determinism() -> Any:
    """The product's choice of kernels, if it makes one."""
    name = "taciturn.engine.model.determinism"
    return importlib.import_module(name) if importlib.util.find_spec(name) else None


@contextmanager
def as_product(place: Place, *, wished: bool = False) -> Iterator[None]:
    """Compute as the product does while it computes private gradients.

    Args:
        wished: where an operation has no deterministic kernel, as `lacks_kernel` says.
    """
    module = _determinism()
    if module is None:
        yield
        return
    with module.deterministic_kernels(torch.device(place.device)):
        if wished:
            module.wish_for_kernels()
        yield


def lacks_kernel(error: Exception) -> bool:
    """True if an operation was refused because it has no deterministic kernel."""
    return isinstance(error, RuntimeError) and "deterministic implementation" in str(error)


def privately(place: Place, work: Callable[[], Outcome]) -> Outcome:
    """The outcome of work that computes as the product does; says which kernel it lacks."""
    try:
        with as_product(place):
            return work()
    except RuntimeError as error:
        if not lacks_kernel(error):
            raise
        reason = said(error)
    with as_product(place, wished=True):
        outcome = work()
    outcome.details["lacks"] = reason
    outcome.figure += " (a kernel lacks)"
    return outcome


def small_config(architecture: str, place: Place) -> Any:
    """Few layers, with the heads of the real ones."""
    head = {"llama": 128, "qwen3": 128, "gemma3": 256, "mixtral": 128}[architecture]
    hidden, middle, vocabulary = 512, 1024, 2048
    if place.tiny:
        head, hidden, middle, vocabulary = 8, 32, 48, 64
    fields: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": middle,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if architecture == "llama":
        return transformers.LlamaConfig(**fields, head_dim=head)
    if architecture == "qwen3":
        return transformers.Qwen3Config(**fields, head_dim=head)
    if architecture == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        return transformers.Gemma3TextConfig(
            **fields, head_dim=head, sliding_window=8, layer_types=layers
        )
    return transformers.MixtralConfig(
        **fields, head_dim=head, num_local_experts=4, num_experts_per_tok=2
    )


def small_loss(architecture: str, method: Method, dtype: torch.dtype, place: Place) -> CausalLmLoss:
    """A small model as the product fits it, with trained values away from zero."""
    torch.manual_seed(_SEED)
    model: Any = AutoModelForCausalLM.from_config(small_config(architecture, place), dtype=dtype)
    model = model.to(place.device)
    adapted = trainable(model, method)
    generator = torch.Generator().manual_seed(_SEED)
    with torch.no_grad():
        # LoRA starts with one matrix at zero, which would hide the other's gradient.
        for value in trainable_parameters(adapted).values():
            value.add_((0.03 * torch.randn(value.shape, generator=generator)).to(value))
    return CausalLmLoss(adapted)


def vocabulary_of(loss: CausalLmLoss) -> int:
    """Number of token ids of a small model."""
    model: Any = loss.model
    return int(model.config.vocab_size)


def trainable(model: Any, method: Method, rank: int = RANK) -> Any:
    """What is trained by `method`, through the product's own code."""
    load.prepare(model)
    if method == "nf4":
        quantise(model)
        load.prepare(model)
    kind: Literal["lora", "full"] = "full" if method == "full" else "lora"
    own_rank = rank if kind == "lora" else None
    return lora.attach(model, AdapterPlan(method=kind, r=own_rank)).eval()


def quantise(model: Any) -> None:
    """The linear layers but for the output's in nf4, as transformers would load them."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SkippedError("bitsandbytes is not installed")
    layers: Any = importlib.import_module("bitsandbytes.nn")
    head = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is not nn.Linear or module is head:
            continue
        packed: Any = layers.Linear4bit(
            module.in_features,
            module.out_features,
            bias=False,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
            device="meta",
        )
        weight = module.weight.data
        packed.weight = layers.Params4bit(
            weight, requires_grad=False, quant_type="nf4", module=packed
        ).to(weight.device)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, packed)
        del module, weight
    model.is_loaded_in_4bit = model.is_quantized = True


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a Llama.

    Attributes:
        key_heads: of keys and values; queries have `heads`.
        tied: whether embedding and output layer are one matrix.
    """

    name: str
    hidden: int
    middle: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool = False
    head_dim: int = 128

    def config(self) -> Any:
        """As transformers wants it."""
        return transformers.LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.middle,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            head_dim=self.head_dim,
            max_position_embeddings=8192,
            tie_word_embeddings=self.tied,
            pad_token_id=0,
            use_cache=False,
        )

    @property
    def multiplied(self) -> int:
        """Weights that a token is multiplied by, the output layer's among them."""
        attention = self.hidden * self.head_dim * 2 * (self.heads + self.key_heads)
        layer = attention + 3 * self.hidden * self.middle
        return self.layers * layer + self.hidden * self.vocabulary

    def flops(self, tokens: int, sequences: int, method: Method) -> float:
        """Operations of the model's forward and backward pass, nothing computed twice.

        With LoRA no weight gradient of the base is needed. Attention counts what a causal mask
        leaves.
        """
        passes = 6 if method == "full" else 4
        attention = 6 * self.layers * self.heads * self.head_dim * tokens * tokens
        return float(sequences) * (passes * self.multiplied * tokens + attention)


LLAMA_1B = Shape("1B", 2048, 8192, 16, 32, 8, 128_256, tied=True, head_dim=64)
LLAMA_8B = Shape("8B", 4096, 14_336, 32, 32, 8, 128_256)
LLAMA_350M = Shape("350M", 1024, 2816, 24, 16, 16, 32_000, head_dim=64)
_TINY = Shape("tiny", 32, 48, 2, 4, 2, 96, head_dim=8)


def real(shape: Shape, place: Place) -> Shape:
    """The shape itself, or a tiny one."""
    return _TINY if place.tiny else shape


def large_model(shape: Shape, method: Method, place: Place, *, checkpointing: bool = False) -> Any:
    """A model of random bf16 weights, made where it runs, with what is trained of it."""
    torch.manual_seed(_SEED)
    with torch.device(place.device):
        model = AutoModelForCausalLM.from_config(shape.config(), dtype=place.half())
    model = model.to(place.device)
    adapted = trainable(model, method)
    if checkpointing:
        load.enable_checkpointing(adapted)
    return adapted
