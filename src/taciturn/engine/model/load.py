"""Load a causal LM and its tokenizer: hub id, local path, GGUF file, or the embedded model."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from taciturn.data.filesystem import RUST, is_utf8
from taciturn.embedded import TINY_MEDICAL, model_path
from taciturn.engine.model.adapter import OWN_DEFAULTS, check_loaded, quiet_peft
from taciturn.engine.model.determinism import fix_workspace
from taciturn.engine.model.dropout import disable_dropout
from taciturn.engine.model.experts import use_exact_experts
from taciturn.engine.model.files import WHERE, check_base, find_base
from taciturn.engine.model.start import choose_start, saved_start
from taciturn.errors import (
    MissingDependencyError,
    ModelError,
    ModelNotFoundError,
    SpecError,
    TaciturnError,
)
from taciturn.reports.privacy import PrivacyReport
from taciturn.spec import PerformanceSpec

_ADAPTER = "adapter_config.json"
# A head for something else than the next token: LlamaForSequenceClassification, BertForMaskedLM.
_OTHER_HEAD = re.compile(r"For(?!CausalLM|ConditionalGeneration)[A-Z]\w*$|DoubleHeadsModel$")
# Buffers that older checkpoints hold and that models make themselves.
_NO_WEIGHTS = re.compile(r"(^|\.)(inv_freq|masked_bias|attn\.bias|position_ids)$")
_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A base model ready to be fitted or sampled from.

    Attributes:
        name: as the user gave it.
        model: the Hugging Face model, in eval mode, dropout off.
        tokenizer: with a padding token.
        context_length: longest input, in tokens.
    """

    name: str
    model: nn.Module
    tokenizer: Any
    context_length: int

    @property
    def n_parameters(self) -> int:
        """Number of parameters, tied ones counted once."""
        return sum(value.numel() for value in self.model.parameters())

    @property
    def vocabulary(self) -> int:
        """Number of token ids the model knows."""
        config: Any = self.model.config
        return int(config.get_text_config().vocab_size)

    @property
    def device(self) -> torch.device:
        """Device of its weights."""
        return next(self.model.parameters()).device


def choose_device(spec: PerformanceSpec) -> torch.device:
    """The device asked for, or the best there is; of several GPUs, each process has its own."""
    fix_workspace()
    if spec.device in (None, "cuda") and torch.cuda.is_available():
        return _own_gpu()
    if spec.device is None:
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(spec.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SpecError(
            f"device={spec.device!r} cannot be used here ({str(error).splitlines()[0]}); "
            "leave it out to take the best there is"
        ) from error
    return device


def _own_gpu() -> torch.device:
    """torchrun counts the processes of a machine in LOCAL_RANK; without it there is one."""
    number, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= gpus:
        raise SpecError(
            f"process {number + 1} of this machine has no GPU of its own: there are {gpus}; start "
            f"at most {gpus} processes per machine, or choose device='cpu'"
        )
    return torch.device("cuda", number) if "LOCAL_RANK" in os.environ else torch.device("cuda")


def choose_dtype(spec: PerformanceSpec, device: torch.device) -> torch.dtype:
    """The arithmetic asked for, or bfloat16 on a GPU and float32 elsewhere."""
    if spec.dtype is not None:
        return torch.float32 if spec.dtype == "float32" else torch.bfloat16
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def load_base(name: str, spec: PerformanceSpec, fitted: Path | None = None) -> LoadedModel:
    """Load model and tokenizer, and see that they are a whole causal LM that fits together.

    Args:
        fitted: folder of a model that was fitted on it: texts begin as that one's records did.
            Without it, with the token that the base expects (`start.py`).

    Raises:
        ModelNotFoundError: it is not there; says the remedy.
        ModelError: it cannot be loaded, is another kind of model, its checkpoint lacks weights or
            has others, or its tokenizer knows tokens that it has no embedding for.
    """
    transformers_logging.disable_progress_bar()
    device = choose_device(spec)
    folder, extra = _locate(name)
    options: dict[str, Any] = {"dtype": choose_dtype(spec, device), **extra}
    if spec.quantization is not None:
        options["quantization_config"] = _quantization(spec.quantization, options["dtype"])
    elif "gguf_file" in extra:
        options |= _whole_weights()
    with _loading(name):
        _check_kind(name, AutoConfig.from_pretrained(folder, trust_remote_code=False, **extra))
        # Code that comes with a model is never run.
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **extra)
        # Weights of other shapes are found here, by name, and refused.
        options |= {"ignore_mismatched_sizes": True, "output_loading_info": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, **options
        )
        model, loading_info = loaded
        _check_checkpoint(name, model, loading_info)
        # A model to be sharded goes to its devices layer by layer: it may be too large for one.
        whole = spec.quantization is None and spec.sharding == "none"
        return adopt(name, model, tokenizer, device if whole else None, fitted)


def adopt(
    name: str,
    model: Any,
    tokenizer: Any,
    device: torch.device | None = None,
    fitted: Path | None = None,
) -> LoadedModel:
    """Make a model and its tokenizer, which somebody has loaded, ready to be fitted.

    Args:
        device: it is moved there.
        fitted: as in `load_base`.

    Raises:
        ModelError: the tokenizer knows tokens that the model has no embedding for.
    """
    prepare(model)
    if device is not None:
        model.to(device)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    rows = len(model.get_input_embeddings().weight)
    _check_tokens(name, tokenizer, rows)
    _set_defaults_aside(model, tokenizer, rows)
    other = choose_start(model, tokenizer) if fitted is None else saved_start(tokenizer, fitted)
    if other:
        model.generation_config.bos_token_id = tokenizer.bos_token_id
    return LoadedModel(name, model, tokenizer, context_length(model.config))


def _set_defaults_aside(model: Any, tokenizer: Any, rows: int) -> None:
    """Let the model write as it is asked to, and by nothing else that its files bring.

    The library fills what a caller leaves open from the base's generation_config.json: a penalty
    for repetition there would change what is called greedy. Texts end with what records end with,
    and with what the base was taught to end with. `adapter.save` puts the defaults back.
    """
    own = getattr(model, OWN_DEFAULTS, model.generation_config)  # of one that is adopted again
    ends = [
        token
        for source in (tokenizer, model.config.get_text_config(), own)
        for token in _tokens_below(rows, getattr(source, "eos_token_id", None))
    ]
    model.generation_config = GenerationConfig(
        bos_token_id=next(iter(_tokens_below(rows, own.bos_token_id)), None),
        eos_token_id=sorted(set(ends)) or None,
    )
    setattr(model, OWN_DEFAULTS, own)


def _tokens_below(rows: int, token: int | Sequence[int] | None) -> list[int]:
    """A configuration's token or tokens, without those that the model has no embedding for."""
    tokens = [] if token is None else [token] if isinstance(token, int) else list(token)
    return [token_id for token_id in tokens if 0 <= token_id < rows]


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Turn whatever libraries raise for a model that is absent, damaged or unknown into one
    sentence.

    And no table besides of weights that do not match, which is refused anyway.
    """
    with _silence:
        try:
            yield
        except TaciturnError:
            raise
        except Exception as error:
            raise _not_loaded(name, error) from error


class _Silence:
    """transformers logs only errors while at least one thread loads a model.

    The level belongs to the process: the last load to end, and not each, restores the one that
    the first found.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loads = 0
        self._level = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._loads == 0:
                self._level = transformers_logging.get_verbosity()
                transformers_logging.set_verbosity_error()
            self._loads += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._loads -= 1
            if self._loads == 0:
                transformers_logging.set_verbosity(self._level)


_silence = _Silence()


def _check_kind(name: str, config: Any) -> None:
    """Refuse encoders, encoder-decoders and heads that predict something else."""
    kind = (config.architectures or [config.model_type])[0]
    if getattr(config, "is_encoder_decoder", False) or _OTHER_HEAD.search(kind):
        raise ModelError(
            f"model {name} is a {kind}, and not a causal language model, which continues a text; "
            "choose one whose config.json says ...ForCausalLM or ...LMHeadModel"
        )


def _check_checkpoint(name: str, model: Any, loading_info: Mapping[str, Any]) -> None:
    """Refuse weights that are not this model's: what is absent would be random.

    What transformers knows to be absent (tied weights) or left over is not among what it found.
    """
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ModelError(f"model {name} brings an adapter with it; {_MERGE_FIRST}")
    for keys, what in (
        (loading_info["missing_keys"], "lacks weights of the model"),
        (loading_info["unexpected_keys"], "holds weights that the model has no place for"),
        ([key for key, *_ in loading_info["mismatched_keys"]], "holds weights of other shapes"),
    ):
        mismatched_keys = sorted(key for key in keys if not _NO_WEIGHTS.search(key))
        if mismatched_keys:
            first_keys = ", ".join(mismatched_keys[:3]) + (
                " ..." if len(mismatched_keys) > 3 else ""
            )
            raise ModelError(
                f"the checkpoint of {name} {what} ({len(mismatched_keys)}: {first_keys}), so "
                "it would not be the model that it is called; save it again from the model itself, "
                "not from a wrapper such as a compiled one or one with another head"
            )


def _check_tokens(name: str, tokenizer: Any, rows: int) -> None:
    """Refuse tokens without an embedding, whether or not a text will have them.

    Special ones stand in no text, so they may be beyond, unless a record begins, ends or is padded
    with them.
    """
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    used = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    beyond = {
        text: number
        for text, number in tokenizer.get_vocab().items()
        if number >= rows and (number in used or number not in special)
    }
    if beyond:
        text = min(beyond, key=beyond.__getitem__)
        raise ModelError(
            f"the tokenizer of {name} has token {text!r} with id {beyond[text]}, and the model has "
            f"embeddings for ids below {rows}; resize_token_embeddings({max(beyond.values()) + 1}) "
            "and save it, or give it its own tokenizer"
        )


def architecture(name: str) -> str:
    """Describe model `name` from its config alone; raises as `load_base` does."""
    folder, extra = _locate(name)
    with _loading(name):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **extra)
    _check_kind(name, config)
    return ", ".join(config.architectures or [config.model_type])


def load_original(
    report: PrivacyReport, spec: PerformanceSpec, beside: Path | None, base_name: str | None = None
) -> LoadedModel:
    """The base that a model was fitted on, by name and digests.

    Args:
        beside: the fitted model's folder, if it has one: the base is looked for near it, too.
        base_name: where the caller says that it is.

    Raises:
        ModelNotFoundError: it is not here; says how to say where it is.
        AdapterError: what is here has other weights.
    """
    expected = report.base_model_sha256
    name = base_name or find_base(report.base_model, expected, beside)
    try:
        base = load_base(name, spec, beside)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error}. If the base is here, {WHERE}") from error
    check_base(name, expected)
    return replace(base, name=report.base_model)


def load_fitted(
    folder: Path, report: PrivacyReport, spec: PerformanceSpec, base: str | None = None
) -> tuple[LoadedModel, Any]:
    """A folder that `LLM.save` wrote: its base (for an adapter) and the fitted model."""
    if not (folder / _ADAPTER).is_file():
        fitted = load_base(str(folder), spec, folder)
        return fitted, fitted.model
    original = load_original(report, spec, folder, base)
    with _loading(str(folder)), quiet_peft():
        model = PeftModel.from_pretrained(original.model, str(folder))
        check_loaded(model, folder)
        model.eval()
    return original, model


def prepare(model: nn.Module) -> None:
    """Make the model a deterministic function of each sequence alone."""
    model.eval()
    disable_dropout(model)
    use_exact_experts(model)
    _settle_quantized_layers(model)


def context_length(config: Any) -> int:
    """Longest input of a model, from its config; 2048 where it does not say."""
    text = config.get_text_config()
    for field in _CONTEXT_FIELDS:
        value = getattr(text, field, None)
        if isinstance(value, int) and value > 0:
            return value
    return 2048


def enable_checkpointing(model: Any) -> None:
    """Recompute activations in the backward pass (non-reentrant), dropout staying off."""
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ModelError(
            f"{type(model).__name__} does not support gradient checkpointing; "
            "set gradient_checkpointing=False and lower microbatch_tokens"
        )
    # Newer transformers call it activation checkpointing.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    # Nothing random is computed again; a CUDA graph could not be asked for the random state.
    enable({"use_reentrant": False, "preserve_rng_state": False})
    model.train()


def _locate(name: str) -> tuple[str, dict[str, Any]]:
    if name == TINY_MEDICAL:
        return str(model_path()), {}
    path = Path(name).expanduser()
    if not is_utf8(path):
        raise ModelNotFoundError(f"model path {name} is no UTF-8; rename it: {RUST}")
    if name.endswith(".gguf"):
        if importlib.util.find_spec("gguf") is None:
            raise MissingDependencyError(
                f"reading {name} needs the gguf package, and it is not installed; run "
                "`pip install 'taciturn[gguf]'`"
            )
        if os.path.isfile(path):
            return str(path.parent), {"gguf_file": path.name}
        if path.is_absolute() or name.count("/") < 2:
            raise ModelNotFoundError(f"GGUF file {name} is not there; check the path")
        repository, _, file = name.rpartition("/")
        return _hub(name, repository, file), {"gguf_file": file}
    if os.path.isdir(path):  # unlike Path's own, False for a name that cannot be
        if (path / _ADAPTER).is_file():
            raise ModelError(
                f"folder {name} holds an adapter of {_base_of(path)}, not a whole model; "
                f"{_MERGE_FIRST}"
            )
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(
                f"folder {name} holds no config.json; give the folder that save_pretrained wrote"
            )
        return str(path), {}
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelNotFoundError(f"model path {name} is not there; check the path")
    return _hub(name, name, "config.json"), {}


def _hub(name: str, repository: str, file: str) -> str:
    """Place to load from: the hub, or the folder of what it once gave if it cannot be reached.

    Asked once. The loaders ask again and again for each of a model's files, minutes in all.
    """
    try:
        get_hf_file_metadata(hf_hub_url(repository, file))
    except EntryNotFoundError:
        raise ModelError(
            f"{repository} is on the hub and holds no {file}: it is an adapter, or in another "
            "format; give a model in transformers' format"
        ) from None
    except HfHubHTTPError:
        pass  # it answers: what it says is for the loaders to understand
    except Exception as unreachable:
        try:
            folder: str = snapshot_download(repository, local_files_only=True)
            return folder
        except (LocalEntryNotFoundError, HFValidationError):
            raise _not_on_hub(name) from unreachable
    return repository


_MERGE_FIRST = (
    "merge it into its base (PEFT's merge_and_unload, then save_pretrained) and give that folder; "
    "of an adapter that taciturn made, give the whole folder, privacy_report.json included"
)


def _base_of(folder: Path) -> str:
    """Base that an adapter says it is for."""
    try:
        config = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))
        return str(config["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return "a base that it does not name"


def _not_loaded(name: str, error: Exception) -> TaciturnError:
    packages = ("sentencepiece", "google.protobuf")
    absent = any(_absent(package) for package in packages)
    if absent and re.search("sentencepiece|tiktoken|protobuf", str(error)):
        # The library asks for tiktoken, whatever the file is.
        return MissingDependencyError(
            f"the tokenizer of {name} is in SentencePiece's format alone, which takes packages "
            "that are not installed; run `pip install sentencepiece protobuf`, or give a copy of "
            "the model that has a tokenizer.json"
        )
    exists = os.path.exists(os.path.expanduser(name)) or name == TINY_MEDICAL
    if exists or not isinstance(error, OSError):
        return ModelError(
            f"model {name} cannot be loaded: {reason(error)}; it must be a causal language model "
            "with config, weights and tokenizer"
        )
    return _not_on_hub(name)


def _absent(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is None
    except ModuleNotFoundError:  # nor is the package that it is in
        return True


def reason(error: Exception) -> str:
    """Message of a library, in one line; with the name of an error that says little without."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:300]
    plain = isinstance(error, OSError | ValueError | ImportError | RuntimeError)
    return first if plain else f"{type(error).__name__}: {first}"


def _not_on_hub(name: str) -> ModelNotFoundError:
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    remedy = (
        "HF_HUB_OFFLINE is set: unset it, or give a local path"
        if offline
        else "check the id, the network and (for a gated model) `hf auth login`, or give a local "
        "path"
    )
    return ModelNotFoundError(
        f"model {name!r} is neither a local folder nor reachable on the hub; {remedy}. "
        f"{TINY_MEDICAL!r} needs no network"
    )


def _whole_weights() -> dict[str, Any]:
    """Make the weights of a GGUF file whole, also where a kernel could multiply by its blocks."""
    import transformers

    kind = getattr(transformers, "GgufConfig", None)  # older versions know no other way
    return {} if kind is None else {"quantization_config": kind(dequantize=True)}


def check_quantizer(model: nn.Module) -> None:
    """Refuse a base that is quantised in a way which is not known to keep records apart.

    Known are bitsandbytes, whose int8 rounds each row by its own maximum, as it is settled at
    loading, and whose 4 bits round weights only; and torchao where it rounds weights only. Others
    may round activations by the largest of a whole batch, as fp8 checkpoints do: then one record
    changes the gradients of all. Weights from a GGUF file are made whole when it is read.

    Raises ModelError that names the quantiser.
    """
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return
    fields = config if isinstance(config, dict) else config.to_dict()
    kind = str(getattr(fields.get("quant_method"), "value", fields.get("quant_method")))
    how = str(fields.get("quant_type", ""))
    whole = kind == "gguf" and all(
        parameter.is_floating_point() for parameter in model.parameters()
    )
    if kind == "bitsandbytes" or whole or (kind == "torchao" and "WeightOnly" in how):
        return
    raise ModelError(
        f"the base is quantised by {kind!r}, which is not known to keep records apart; private "
        "fits take bases in nf4 or int8 (bitsandbytes), or ones that are not quantised"
    )


def _settle_quantized_layers(model: nn.Module) -> None:
    """int8 without columns of outliers, 4 bits without repacking, also for a base that comes so.

    By default bitsandbytes computes a column of int8 in half precision as soon as one value in it
    is large, whoever's it is: one record would change the gradients of those that share its
    microbatch, which no clipping of that record bounds. Without, each row is rounded by its own
    maximum. And on some CPUs it repacks a 4-bit layer when it is first used without gradients, for
    bfloat16 arithmetic that training does not have, and only where its outputs come in 32s.
    """
    for module in model.modules():
        kind, layer = type(module).__name__, cast(Any, module)
        if kind == "Linear8bitLt":
            layer.state.threshold = 0.0
        elif kind == "Linear4bit":
            layer.support_avx512bf16_for_cpu = False


def _quantization(kind: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if importlib.util.find_spec("bitsandbytes") is not None:
        if kind == "int8":
            # It says at every product that fp32 inputs are rounded; that is what int8 means.
            logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    if kind == "int8" and importlib.util.find_spec("torchao") is not None:
        from torchao.quantization import Int8WeightOnlyConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    raise MissingDependencyError(
        f"quantization={kind!r} needs bitsandbytes (or torchao for int8), and neither is "
        "installed; run `pip install 'taciturn[quantization]'` or leave quantization out"
    )
