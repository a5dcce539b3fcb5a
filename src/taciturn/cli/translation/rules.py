"""Every key of Axolotl's and LLaMA-Factory's files that has a meaning here: a table for each.

A key in no table is listed as unknown. What a key asks for is taken over, needs nothing here, or
cannot be honoured; the two latter have a reason, which its user reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from taciturn.errors import SpecError


@dataclass(frozen=True, slots=True)
class Takes:
    """A key that becomes fields of ours.

    Attributes:
        convert: gives the fields; raises SpecError with the reason where the value cannot be had.
        note: what its user should know of the difference.
    """

    convert: Callable[[Any], Mapping[str, Any]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Needless:
    """A key without a use here: nothing of the result depends on it, or it is always so."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A key that cannot be honoured, unless it asks for nothing.

    Attributes:
        harmless: values that ask for nothing, beside empty ones, false and 0.
    """

    reason: str
    harmless: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A key that is read together with others (`datasets.py`, and the batch)."""


Rule = Takes | Needless | Refused | Elsewhere


@dataclass(frozen=True, slots=True)
class Tool:
    """A program whose files are understood.

    Attributes:
        signs: keys that its files have, and those of the other one do not.
        batch: keys whose product is the number of records in a step.
    """

    name: str
    signs: frozenset[str]
    rules: Mapping[str, Rule]
    batch: tuple[str, ...]


def whole(value: Any) -> int:
    """Return a whole number; raises SpecError for anything else."""
    number = _number(value)
    if not number.is_integer():
        raise SpecError("it is no whole number")
    return int(number)


def _number(value: Any) -> float:
    """Return a number, also of text such as 2e-4, which YAML takes for no number."""
    try:
        number = float(value) if not isinstance(value, bool) else None
    except (TypeError, ValueError):
        number = None
    if number is None:
        raise SpecError("it is no number")
    return number


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise SpecError("it is no text")
    return value


def _field(name: str, read: Callable[[Any], Any], note: str = "") -> Takes:
    return Takes(lambda value: {name: read(value)}, note)


def _by_value(choices: Mapping[object, Mapping[str, Any]], reason: str, note: str = "") -> Takes:
    """A key of which some values are understood."""

    def convert(value: Any) -> Mapping[str, Any]:
        key = value.strip().lower() if isinstance(value, str) else value
        if not isinstance(key, str | int | None) or key not in choices:
            raise SpecError(reason)
        return choices[key]

    return Takes(convert, note)


def _positive(name: str, read: Callable[[Any], Any]) -> Takes:
    """A number of which -1 and 0 mean: none."""
    return Takes(lambda value: {name: read(value)} if _number(value) > 0 else {})


def _targets(value: Any) -> Mapping[str, Any]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise SpecError("it is no list of names of layers")
    names = [name.strip() for name in names if name.strip()]
    return {} if names in ([], ["all"], ["all-linear"]) else {"target_modules": names}


_TRACKERS = ("tensorboard", "mlflow", "wandb")


def _trackers(value: Any) -> Mapping[str, Any]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list):
        raise SpecError("it is no list of trackers")
    names = [name for name in names if name not in ("none", "all", None)]
    if not all(name in _TRACKERS for name in names):
        raise SpecError(f"public values go to {', '.join(_TRACKERS)} or csv; choose one of these")
    return {"report_to": names} if names else {}


def _tracker(name: str) -> Takes:
    return Takes(lambda value: {"report_to": [name]} if value else {})


_ATTENTION = Needless("transformers chooses the attention that the machine has")
_PRINTED = Refused(
    "training loss, norms and batches are computed from private rows, and are in private/ alone; "
    "what the budget paid for is shown: report_to"
)
_EVALUATION = Refused(
    "a loss on held-out private rows costs budget; keep them apart, and run: taciturn evaluate",
    ("no",),
)
_PACKING = Refused(
    "units that share a row would round by each other; a row holds one unit's records"
)
_ORDER = Refused("who is in a step is drawn anew each time (Poisson), which the guarantee rests on")
_OPTIMIZER = Refused(
    "noised gradients go through AdamW, whose settings and schedule are the plan's",
    ("adamw_torch", "adamw_torch_fused"),
)
_CLIP = Refused(
    "it clips the gradient of a whole batch, which bounds nobody's part of it; each unit's is "
    "clipped instead: l2_clip_norm"
)
_FLOAT16 = Refused("float16 needs loss scaling, which follows private gradients; use bfloat16")
_TF32 = Refused("products would be rounded to 10 bits while norms are bounded in float32")
_DROPOUT = Refused("it would make a unit's gradient random, so that it could not be verified")
_SHARDS = Refused(
    "another library would spread the weights, and hide per-unit gradients; start with torchrun, "
    "and give sharding: full"
)
_KERNELS = Refused("fused kernels hide the inputs that per-unit gradients are made of")
_OTHER_ADAPTER = Refused("the adapter is plain LoRA, whose per-unit gradients are exact")
_WHOLE_LAYERS = Refused("of a base with an adapter nothing else is trained; take method: full")
_LOADER = Needless("rows are read and tokenised once, in bounded memory")
_FILES = Needless("the output folder has adapter, card, report and checkpoints; --resume goes on")
_HUB = Refused("nothing is uploaded while a model is trained; afterwards: taciturn push")
_TOKENIZER = Refused("tokenizer and special tokens are those that came with the model")
_CODE = Refused("code of a repository is not run")
_TEMPLATE = Needless("the model's own chat template writes conversations")
_PROMPTED = Refused("the loss is on the answer; give the whole as one column with text_field")
_ROWS = Refused("which rows are there is decided by select, row-wise SQL, or by who gives the file")
_REWARD = Refused("the loss is that of a causal language model, or of preferences (dpo)")
_QUANTISED = Refused("a base is loaded in int8 or nf4", ("bitsandbytes", "bnb", "nf4"))
_RESUMED = Refused("a run goes on with: taciturn fit --resume")
_MACHINE = Needless("it says how the work is spread, not what is computed")

_SHARED: Mapping[str, Rule] = {
    "learning_rate": _field("learning_rate", _number),
    "lora_alpha": _field("alpha", _number),
    "lora_dropout": _DROPOUT,
    "max_steps": _positive("steps", whole),
    "gradient_accumulation_steps": Elsewhere(),
    "gradient_checkpointing": _by_value(
        {
            True: {"gradient_checkpointing": True},
            False: {"gradient_checkpointing": False},
            **{mode: {"gradient_checkpointing": True} for mode in ("true", "unsloth", "offload")},
        },
        "it is neither true nor false",
    ),
    "gradient_checkpointing_kwargs": Needless("checkpointing is non-reentrant"),
    "bf16": _by_value(
        {
            True: {"dtype": "bfloat16"},
            "full": {"dtype": "bfloat16"},
            "auto": {},
            False: {"dtype": "float32"},
            None: {},
        },
        "it is none of true, false, auto and full",
    ),
    "fp16": _FLOAT16,
    "tf32": _TF32,
    "output_dir": _field("output", _text),
    "seed": _field("seed", whole, "it seeds initial adapter weights; never noise or sampling"),
    "save_steps": _field("checkpoint_every", whole),
    "save_strategy": _FILES,
    "save_total_limit": _FILES,
    "save_safetensors": _FILES,
    "save_only_model": _FILES,
    "overwrite_output_dir": _FILES,
    "load_best_model_at_end": Refused(
        "choosing by a loss on private rows that was not charged would tell of them"
    ),
    "early_stopping_patience": Refused("stopping by a private loss would tell of it"),
    "logging_steps": _PRINTED,
    "logging_strategy": _PRINTED,
    "eval_steps": _EVALUATION,
    "eval_strategy": _EVALUATION,
    "evaluation_strategy": _EVALUATION,
    "eval_batch_size": _EVALUATION,
    "warmup_steps": _OPTIMIZER,
    "warmup_ratio": _OPTIMIZER,
    "weight_decay": _OPTIMIZER,
    "adam_beta1": _OPTIMIZER,
    "adam_beta2": _OPTIMIZER,
    "adam_epsilon": _OPTIMIZER,
    "max_grad_norm": _CLIP,
    "group_by_length": _ORDER,
    "deepspeed": _SHARDS,
    "fsdp": _SHARDS,
    "fsdp_config": _SHARDS,
    "neftune_noise_alpha": Refused("it would make a record's loss random"),
    "loraplus_lr_ratio": Refused("all adapter matrices have one learning rate"),
    "loraplus_lr_embedding": Refused("all adapter matrices have one learning rate"),
    "trust_remote_code": _CODE,
    "resume_from_checkpoint": _RESUMED,
    "chat_template": _TEMPLATE,
    "report_to": Takes(_trackers),
    "run_name": Needless("a tracker's run is named after the output folder"),
    "torch_compile": _by_value(
        {True: {"compile": True}, False: {}}, "it is neither true nor false"
    ),
    "streaming": _LOADER,
    "dataloader_num_workers": _LOADER,
    "dataloader_pin_memory": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "ddp_timeout": _MACHINE,
    "local_rank": _MACHINE,
    "hub_model_id": _HUB,
    "push_to_hub": _HUB,
    "hub_strategy": _HUB,
}

AXOLOTL = Tool(
    name="Axolotl",
    signs=frozenset(
        {
            *("base_model", "datasets", "adapter", "sequence_len", "micro_batch_size", "lora_r"),
            *("num_epochs", "val_set_size", "sample_packing", "load_in_4bit", "load_in_8bit"),
        }
    ),
    batch=("micro_batch_size", "gradient_accumulation_steps"),
    rules={
        **_SHARED,
        "base_model": _field("model", _text),
        "base_model_config": _TOKENIZER,
        "base_model_ignore_patterns": Needless("a model's folder is read as it is"),
        "revision_of_model": Refused("give a folder with the revision that you mean"),
        "model_type": Needless("what a model is stands in its configuration"),
        "tokenizer_type": _TOKENIZER,
        "tokenizer_config": _TOKENIZER,
        "tokenizer_use_fast": _TOKENIZER,
        "tokenizer_legacy": _TOKENIZER,
        "special_tokens": _TOKENIZER,
        "tokens": _TOKENIZER,
        "added_tokens_overrides": _TOKENIZER,
        "resize_token_embeddings_to_32x": _TOKENIZER,
        "is_llama_derived_model": Needless("what a model is stands in its configuration"),
        "is_mistral_derived_model": Needless("what a model is stands in its configuration"),
        "is_falcon_derived_model": Needless("what a model is stands in its configuration"),
        "strict": Needless("unknown fields are always refused"),
        "datasets": Elsewhere(),
        "test_datasets": _EVALUATION,
        "pretraining_dataset": Refused("give the text as a data set of type completion"),
        "dataset_prepared_path": _LOADER,
        "dataset_processes": _LOADER,
        "dataset_keep_in_memory": _LOADER,
        "skip_prepare_dataset": _LOADER,
        "shuffle_merged_datasets": _ORDER,
        "shuffle_before_merging_datasets": _ORDER,
        "dataset_exact_deduplication": _ROWS,
        "default_system_message": Refused("put it into the conversations"),
        "chat_template_jinja": Refused("put it into the tokenizer's folder"),
        "adapter": _by_value(
            {
                "lora": {"method": "lora"},
                "qlora": {"method": "lora", "quantization": "nf4"},
                None: {"method": "full"},
                "": {"method": "full"},
            },
            "the adapter is lora, qlora, or none for training in full",
        ),
        "lora_model_dir": Refused("a saved adapter is fitted further with model: its folder"),
        "lora_r": _field("r", whole),
        "lora_target_modules": Takes(_targets),
        "lora_target_linear": _by_value(
            {True: {}, False: {}, None: {}},
            "it is neither true nor false",
            "an adapter has all linear layers, unless target_modules says otherwise",
        ),
        "lora_modules_to_save": _WHOLE_LAYERS,
        "lora_fan_in_fan_out": Needless("layers are read as they are"),
        "peft_use_dora": _OTHER_ADAPTER,
        "peft_use_rslora": _OTHER_ADAPTER,
        "peft_init_lora_weights": _OTHER_ADAPTER,
        "peft_layers_to_transform": _OTHER_ADAPTER,
        "lora_mlp_kernel": _KERNELS,
        "lora_qkv_kernel": _KERNELS,
        "lora_o_kernel": _KERNELS,
        "relora_steps": _OTHER_ADAPTER,
        "unfrozen_parameters": _WHOLE_LAYERS,
        "load_in_4bit": _by_value(
            {True: {"quantization": "nf4"}, False: {}, None: {}}, "it is neither true nor false"
        ),
        "load_in_8bit": _by_value(
            {True: {"quantization": "int8"}, False: {}, None: {}}, "it is neither true nor false"
        ),
        "gptq": _QUANTISED,
        "sequence_len": _field("max_tokens", whole),
        "sample_packing": _PACKING,
        "eval_sample_packing": _PACKING,
        "multipack_real_batches": _PACKING,
        "sample_packing_eff_est": _PACKING,
        "sample_packing_group_size": _PACKING,
        "pad_to_sequence_len": Needless("rows are padded as far as they need it"),
        "micro_batch_size": Elsewhere(),
        "num_epochs": _field("epochs", _number),
        "optimizer": _OPTIMIZER,
        "optim_args": _OPTIMIZER,
        "lr_scheduler": _OPTIMIZER,
        "lr_scheduler_kwargs": _OPTIMIZER,
        "cosine_min_lr_ratio": _OPTIMIZER,
        "train_on_inputs": _PROMPTED,
        "val_set_size": _EVALUATION,
        "evals_per_epoch": _EVALUATION,
        "eval_table_size": _EVALUATION,
        "eval_max_new_tokens": _EVALUATION,
        "eval_sample_packing_group_size": _EVALUATION,
        "do_bench_eval": _EVALUATION,
        "saves_per_epoch": _FILES,
        "auto_resume_from_checkpoints": _RESUMED,
        "bfloat16": _by_value({True: {"dtype": "bfloat16"}, False: {}}, "it is no yes or no"),
        "float16": _FLOAT16,
        "float32": _by_value({True: {"dtype": "float32"}, False: {}}, "it is no yes or no"),
        "flash_attention": _ATTENTION,
        "sdp_attention": _ATTENTION,
        "eager_attention": _ATTENTION,
        "xformers_attention": _ATTENTION,
        "flex_attention": _ATTENTION,
        "attn_implementation": _ATTENTION,
        "s2_attention": Refused("it changes the model's attention"),
        "flash_attn_cross_entropy": _KERNELS,
        "flash_attn_rms_norm": _KERNELS,
        "flash_attn_fuse_qkv": _KERNELS,
        "flash_attn_fuse_mlp": _KERNELS,
        "plugins": Refused("code of plugins is not run"),
        "liger_rope": _KERNELS,
        "liger_rms_norm": _KERNELS,
        "liger_glu_activation": _KERNELS,
        "liger_layer_norm": _KERNELS,
        "liger_fused_linear_cross_entropy": _KERNELS,
        "unsloth_lora_mlp": _KERNELS,
        "unsloth_lora_qkv": _KERNELS,
        "unsloth_lora_o": _KERNELS,
        "unsloth_cross_entropy_loss": _KERNELS,
        "fsdp_version": _SHARDS,
        "device_map": _MACHINE,
        "gpu_memory_limit": _MACHINE,
        "ddp_bucket_cap_mb": _MACHINE,
        "ddp_broadcast_buffers": _MACHINE,
        "loss_watchdog_threshold": Refused("stopping by a private loss would tell of it"),
        "loss_watchdog_patience": Refused("stopping by a private loss would tell of it"),
        "noisy_embedding_alpha": Refused("it would make a record's loss random"),
        "rl": _by_value(
            {"dpo": {"objective": "dpo"}, None: {}, "": {}},
            "the loss is that of a causal language model, or of preferences (dpo)",
        ),
        "rl_beta": _field("beta", _number),
        "dpo_beta": _field("beta", _number),
        "hf_use_auth_token": Needless("huggingface_hub reads its own token"),
        "use_wandb": _tracker("wandb"),
        "wandb_project": _tracker("wandb"),
        "wandb_entity": Needless("wandb reads WANDB_ENTITY from the environment"),
        "wandb_name": Needless("wandb reads WANDB_NAME from the environment"),
        "wandb_run_id": Needless("wandb reads WANDB_RUN_ID from the environment"),
        "wandb_mode": Needless("wandb reads WANDB_MODE from the environment"),
        "wandb_watch": _PRINTED,
        "wandb_log_model": _HUB,
        "use_tensorboard": _tracker("tensorboard"),
        "use_mlflow": _tracker("mlflow"),
        "mlflow_tracking_uri": Takes(
            lambda value: {"report_to": [f"mlflow:{_text(value)}"]} if value else {}
        ),
        "mlflow_experiment_name": Needless("mlflow reads MLFLOW_EXPERIMENT_NAME"),
        "use_comet": Refused("public values go to tensorboard, mlflow, wandb or csv"),
        "debug": Needless("an error says what it needs"),
    },
)

LLAMA_FACTORY = Tool(
    name="LLaMA-Factory",
    signs=frozenset(
        {
            *("model_name_or_path", "dataset", "dataset_dir", "finetuning_type", "stage"),
            *("cutoff_len", "template", "lora_rank", "lora_target", "quantization_bit"),
            *("per_device_train_batch_size", "num_train_epochs", "val_size", "do_train"),
        }
    ),
    batch=("per_device_train_batch_size", "gradient_accumulation_steps"),
    rules={
        **_SHARED,
        "model_name_or_path": _field("model", _text),
        "model_revision": Refused("give a folder with the revision that you mean", ("main",)),
        "adapter_name_or_path": Refused("a saved adapter is fitted further with model: its folder"),
        "use_fast_tokenizer": _TOKENIZER,
        "resize_vocab": _TOKENIZER,
        "add_tokens": _TOKENIZER,
        "add_special_tokens": _TOKENIZER,
        "stage": _by_value(
            {"sft": {}, "pt": {}, "dpo": {"objective": "dpo"}},
            "the loss is that of a causal language model, or of preferences (dpo)",
        ),
        "do_train": Needless("fit trains"),
        "do_eval": _EVALUATION,
        "do_predict": Refused("a model writes with: taciturn sample"),
        "predict_with_generate": Refused("a model writes with: taciturn sample"),
        "finetuning_type": _by_value(
            {"lora": {"method": "lora"}, "full": {"method": "full"}},
            "the method is lora or full",
        ),
        "lora_rank": _field("r", whole),
        "lora_target": Takes(_targets),
        "additional_target": _WHOLE_LAYERS,
        "use_dora": _OTHER_ADAPTER,
        "use_rslora": _OTHER_ADAPTER,
        "pissa_init": _OTHER_ADAPTER,
        "create_new_adapter": _OTHER_ADAPTER,
        "freeze_trainable_layers": _WHOLE_LAYERS,
        "freeze_trainable_modules": _WHOLE_LAYERS,
        "use_galore": _OTHER_ADAPTER,
        "use_badam": _OTHER_ADAPTER,
        "use_apollo": _OTHER_ADAPTER,
        "quantization_bit": _by_value(
            {
                4: {"quantization": "nf4"},
                8: {"quantization": "int8"},
                None: {},
                "4": {"quantization": "nf4"},
                "8": {"quantization": "int8"},
            },
            "a base is loaded in 8 bits (int8) or 4 (nf4)",
        ),
        "quantization_method": _QUANTISED,
        "quantization_type": _QUANTISED,
        "double_quantization": Needless("nf4 keeps its own scales"),
        "dataset": Elsewhere(),
        "dataset_dir": Elsewhere(),
        "eval_dataset": _EVALUATION,
        "media_dir": Refused("rows hold text only"),
        "template": _TEMPLATE,
        "default_system": Refused("put it into the conversations"),
        "enable_thinking": _TEMPLATE,
        "cutoff_len": _field("max_tokens", whole),
        "max_samples": _ROWS,
        "mix_strategy": _ROWS,
        "interleave_probs": _ROWS,
        "overwrite_cache": _LOADER,
        "preprocessing_num_workers": _LOADER,
        "preprocessing_batch_size": _LOADER,
        "tokenized_path": _LOADER,
        "buffer_size": _LOADER,
        "packing": _PACKING,
        "neat_packing": _PACKING,
        "train_on_prompt": _PROMPTED,
        "mask_history": Refused("every turn of the assistant is learned"),
        "per_device_train_batch_size": Elsewhere(),
        "per_device_eval_batch_size": _EVALUATION,
        "num_train_epochs": _field("epochs", _number),
        "optim": _OPTIMIZER,
        "lr_scheduler_type": _OPTIMIZER,
        "lr_scheduler_kwargs": _OPTIMIZER,
        "pure_bf16": _by_value({True: {"dtype": "bfloat16"}, False: {}}, "it is no yes or no"),
        "upcast_layernorm": Needless("norms are computed in float32 where the model does so"),
        "upcast_lmhead_output": Needless("losses are computed in float32"),
        "disable_gradient_checkpointing": _by_value(
            {True: {"gradient_checkpointing": False}, False: {}}, "it is neither true nor false"
        ),
        "use_reentrant_gc": Needless("checkpointing is non-reentrant"),
        "flash_attn": _ATTENTION,
        "shift_attn": Refused("it changes the model's attention"),
        "rope_scaling": Refused("it changes the model; give a folder with its configuration"),
        "mixture_of_depths": Refused("it changes the model"),
        "use_unsloth": _KERNELS,
        "use_unsloth_gc": _KERNELS,
        "enable_liger_kernel": _KERNELS,
        "val_size": _EVALUATION,
        "plot_loss": _PRINTED,
        "include_num_input_tokens_seen": _PRINTED,
        "include_tokens_per_second": _PRINTED,
        "compute_accuracy": _EVALUATION,
        "use_swanlab": Refused("public values go to tensorboard, mlflow, wandb or csv"),
        "pref_beta": _field("beta", _number),
        "pref_loss": Refused("the loss of preferences is DPO's own", ("sigmoid",)),
        "pref_ftx": _REWARD,
        "reward_model": _REWARD,
        "ref_model": Needless("the base with its adapter off is what preferences refer to"),
        "hf_hub_token": Needless("huggingface_hub reads its own token"),
        "low_cpu_mem_usage": _LOADER,
        "device_map": _MACHINE,
        "offload_folder": _MACHINE,
        "ddp_find_unused_parameters": _MACHINE,
        "print_param_status": Needless("an error says what it needs"),
    },
)

TOOLS = (AXOLOTL, LLAMA_FACTORY)
