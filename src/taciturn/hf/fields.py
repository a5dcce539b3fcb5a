"""Every field of TrainingArguments and of TRL's SFTConfig: mapped, harmless or refused.

`python -m taciturn.hf` prints the table. A field that is in no list here, as later versions of the
libraries may have, is refused unless it is at its default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from taciturn.errors import SpecError

Kind = Literal["mapped", "harmless", "refused"]


@dataclass(frozen=True, slots=True)
class Field:
    """Treatment of one field.

    Attributes:
        kind: mapped to a setting here; harmless, so that it is ignored; or refused where it is not
            at its default.
        text: what it becomes; why nothing depends on it; or the reason and the remedy.
        choices: of a mapped field, the only values that can be honoured.
    """

    kind: Kind
    text: str
    choices: tuple[object, ...] | None = None


def _mapped(text: str, *choices: object) -> Field:
    return Field("mapped", text, choices or None)


def _harmless(text: str) -> Field:
    return Field("harmless", text)


def _refusal(text: str) -> Field:
    return Field("refused", text)


_LOADER = _harmless("rows are read and tokenised once, by taciturn's own reader")
_DDP = _harmless("gradients are summed after clipping, not by DistributedDataParallel")
_HUB = _harmless("nothing is uploaded while a model is trained")
_EVAL = _harmless("evaluations have no batches that a result could depend on")
_MACHINE = _harmless("says what is printed, not what is computed")
_OPTIMIZER = "noised gradients go through AdamW, whose settings are public"
_SHARD = _refusal(
    "another library would spread the weights, and per-unit gradients would not be seen; start "
    "with torchrun or accelerate launch without it"
)
_BEST = _refusal(
    "choosing by a loss on private rows that was not charged would tell of them; keep the last "
    "model, and judge it with evaluate()"
)
_LOSS = "the loss is each record's own cross-entropy, so that clipping bounds one unit's part"
_METRICS = _refusal(
    "a metric of private rows is not bounded, so no noise could pay for it; evaluate() releases "
    "loss and accuracy"
)

TRAINING: Mapping[str, Field] = {
    "output_dir": _mapped("folder of the released model; its subfolder private/ holds the run"),
    "per_device_train_batch_size": _mapped(
        "times gradient_accumulation_steps and processes: expected units of a logical step"
    ),
    "gradient_accumulation_steps": _mapped(
        "a factor of the logical step; microbatches are chosen by memory and change nothing"
    ),
    "num_train_epochs": _mapped("expected passes over the units"),
    "max_steps": _mapped("steps, in place of epochs, if above 0"),
    "learning_rate": _mapped("peak learning rate; at its default the plan decides it"),
    "lr_scheduler_type": _mapped(
        "shape of the schedule; the plan's own where this and learning_rate are at their defaults",
        *("linear", "cosine", "constant", "constant_with_warmup"),
    ),
    "lr_scheduler_kwargs": _refusal("the schedules here have no settings; leave it out"),
    "warmup_steps": _mapped("steps of warm-up, or below 1 a share; the plan's own at 0"),
    "warmup_ratio": _mapped("share of steps that is warm-up; the plan's own at 0"),
    "optim": _mapped("AdamW", "adamw_torch", "adamw_torch_fused"),
    "optim_args": _refusal(f"{_OPTIMIZER}; leave it out"),
    "optim_target_modules": _refusal(
        f"{_OPTIMIZER}; PrivacyArguments(target_modules=...) says what is trained"
    ),
    "weight_decay": _mapped("AdamW's; the plan's own at its default"),
    "adam_beta1": _mapped("AdamW's; the plan's own at its default"),
    "adam_beta2": _mapped("AdamW's; the plan's own at its default"),
    "adam_epsilon": _refusal("AdamW's epsilon is 1e-8 here; leave it out"),
    "max_grad_norm": _refusal(
        "clipping a whole batch bounds nobody's part of it; each unit's gradient is clipped "
        "instead: PrivacyArguments(l2_clip_norm=...)"
    ),
    "average_tokens_across_devices": _harmless(f"{_LOSS}: no mean over a batch's tokens"),
    "label_smoothing_factor": _refusal(f"{_LOSS}, without smoothing; leave it at 0"),
    "bf16": _mapped("weights and arithmetic in bfloat16; trained weights stay in float32"),
    "fp16": _refusal("float16 needs loss scaling, which follows private gradients; use bf16"),
    "half_precision_backend": _harmless("there is one"),
    "bf16_full_eval": _harmless("evaluations run as training does"),
    "fp16_full_eval": _refusal("float16 is not used here; use bf16"),
    "tf32": _refusal(
        "products would be rounded to 10 bits while norms are bounded in float32; leave it out"
    ),
    "activation_checkpointing": _mapped("the same as gradient_checkpointing"),
    "activation_checkpointing_kwargs": _refusal("checkpointing is non-reentrant; leave it out"),
    "gradient_checkpointing": _mapped("activations are computed again in the backward pass"),
    "gradient_checkpointing_kwargs": _refusal("checkpointing is non-reentrant; leave it out"),
    "torch_compile": _mapped("compiles what nothing is trained in"),
    "torch_compile_backend": _refusal(
        "what is compiled is verified with one backend; leave it out"
    ),
    "torch_compile_mode": _refusal("what is compiled is verified in one mode; leave it out"),
    "use_liger_kernel": _refusal(
        "fused kernels hide the inputs that per-unit gradients are made of; leave it out"
    ),
    "liger_kernel_config": _refusal("goes with use_liger_kernel; leave it out"),
    "use_cache": _harmless("training needs no cache of keys and values"),
    "neftune_noise_alpha": _refusal(
        "it makes a record's loss random, and its gradient could not be verified; leave it out"
    ),
    "torch_empty_cache_steps": _harmless("memory is planned from public sizes"),
    "auto_find_batch_size": _refusal(
        "the expected batch is part of the promise, and memory does not change it; leave it out"
    ),
    "logging_strategy": _mapped("when public values are written down", "no", "steps", "epoch"),
    "logging_steps": _mapped("steps between two entries of the log"),
    "logging_first_step": _mapped("the first step is logged, too"),
    "logging_dir": _mapped("folder of TensorBoard's files"),
    "log_on_each_node": _MACHINE,
    "logging_nan_inf_filter": _harmless("no loss is logged: it is private"),
    "include_num_input_tokens_seen": _refusal(
        "how many tokens the rows of a step have is private; leave it out"
    ),
    "include_tokens_per_second": _refusal(
        "how many tokens the rows of a step have is private; leave it out"
    ),
    "log_level": _MACHINE,
    "log_level_replica": _MACHINE,
    "disable_tqdm": _mapped("a bar, or printed lines"),
    "report_to": _mapped(
        "trackers of public values", "tensorboard", "mlflow", "wandb", "csv", "none"
    ),
    "run_name": _harmless("a tracker's run is called taciturn fit"),
    "project": _harmless("is for trackio"),
    "trackio_space_id": _harmless("is for trackio"),
    "trackio_bucket_id": _harmless("is for trackio"),
    "trackio_static_space_id": _harmless("is for trackio"),
    "eval_strategy": _mapped(
        "public data are judged while training: PrivacyArguments(eval_is_public=True)",
        *("no", "steps", "epoch"),
    ),
    "do_eval": _harmless("call evaluate()"),
    "eval_steps": _mapped("steps between two evaluations of public data; default logging_steps"),
    "eval_delay": _refusal("evaluations begin at once; leave it out"),
    "per_device_eval_batch_size": _EVAL,
    "prediction_loss_only": _refusal(
        "losses of rows are private; evaluate() gives figures that are public or paid for"
    ),
    "eval_on_start": _mapped("public data are judged before the first step, too"),
    "eval_do_concat_batches": _EVAL,
    "eval_use_gather_object": _EVAL,
    "eval_accumulation_steps": _EVAL,
    "include_for_metrics": _METRICS,
    "batch_eval_metrics": _METRICS,
    "save_strategy": _mapped("with steps, checkpoints come so often", "no", "steps", "epoch"),
    "save_steps": _mapped("steps between two checkpoints, in private/"),
    "save_only_model": _refusal("a run could not be resumed; leave it out"),
    "save_safetensors": _harmless("files are always safetensors"),
    "save_on_each_node": _refusal("all processes share one output folder; leave it out"),
    "save_total_limit": _harmless("two checkpoints are kept"),
    "enable_jit_checkpoint": _harmless("SIGTERM always leaves a checkpoint"),
    "restore_callback_states_from_checkpoint": _refusal(
        "checkpoints hold no state of callbacks; leave it out"
    ),
    "push_to_hub": _refusal(
        "a run that stops half-way has nothing to show; train, then upload the output folder "
        "without private/, which save_model(FOLDER) leaves out"
    ),
    "hub_token": _HUB,
    "hub_private_repo": _HUB,
    "hub_model_id": _HUB,
    "hub_strategy": _HUB,
    "hub_always_push": _HUB,
    "hub_revision": _HUB,
    "load_best_model_at_end": _BEST,
    "metric_for_best_model": _BEST,
    "greater_is_better": _BEST,
    "ignore_data_skip": _harmless("units are drawn anew: no rows are skipped"),
    "full_determinism": _refusal("whoever could repeat the noise could take it away; leave it out"),
    "seed": _mapped(
        "initial weights of the adapter, and which records a unit keeps; never noise or sampling"
    ),
    "data_seed": _refusal(
        "the units of a step are drawn by the system's random numbers, as the promise needs; "
        "leave it out"
    ),
    "use_cpu": _mapped("runs on the CPU"),
    "accelerator_config": _refusal(
        "how batches are split among processes is part of the engine; leave it out"
    ),
    "parallelism_config": _SHARD,
    "fsdp": _SHARD,
    "fsdp_config": _SHARD,
    "deepspeed": _SHARD,
    "dataloader_drop_last": _refusal(
        "a step's units are drawn one by one, so that there is no last batch; leave it out"
    ),
    "dataloader_num_workers": _LOADER,
    "dataloader_pin_memory": _LOADER,
    "dataloader_persistent_workers": _LOADER,
    "dataloader_prefetch_factor": _LOADER,
    "dataloader_multiprocessing_context": _LOADER,
    "dataloader_in_order": _LOADER,
    "remove_unused_columns": _harmless("columns that are not trained on are not read"),
    "label_names": _refusal("labels are in the column labels; rename it"),
    "train_sampling_strategy": _refusal(
        "epsilon holds for units drawn independently (Poisson); an order, or groups by length, "
        "would break it. Leave it out: microbatches go by length anyway"
    ),
    "group_by_length": _refusal(
        "epsilon holds for units drawn independently (Poisson); groups by length would break it. "
        "Leave it out: microbatches go by length anyway"
    ),
    "length_column_name": _harmless("no column of lengths is read"),
    "ddp_find_unused_parameters": _DDP,
    "ddp_bucket_cap_mb": _DDP,
    "ddp_broadcast_buffers": _DDP,
    "ddp_static_graph": _DDP,
    "ddp_backend": _DDP,
    "ddp_timeout": _harmless("a process that is lost is seen at once"),
    "local_rank": _harmless("the launcher's environment says it"),
    "debug": _refusal("it would print values computed from private rows; leave it out"),
    "skip_memory_metrics": _refusal(
        "how much memory a step takes depends on its rows; leave it out"
    ),
    "do_train": _harmless("call train()"),
    "do_predict": _harmless("call predict(), which says what there is instead"),
    "resume_from_checkpoint": _mapped("goes on with the run in output_dir"),
}
_TEMPLATE = _refusal("set it in the tokenizer that you give as processing_class; leave it out")
_KEYS = _refusal("records are prepared by taciturn; leave it out")

SFT: Mapping[str, Field] = {
    "model_init_kwargs": _refusal("load the model yourself, and give it as model"),
    "trust_remote_code": _refusal("code that comes with a model is never run; leave it out"),
    "router_aux_loss_coef": _refusal(
        "the load of experts in a batch is no record's own loss; leave it out"
    ),
    "chat_template_path": _TEMPLATE,
    "dataset_text_field": _mapped("column of the text"),
    "dataset_kwargs": _KEYS,
    "dataset_num_proc": _LOADER,
    "eos_token": _TEMPLATE,
    "pad_token": _TEMPLATE,
    "max_length": _mapped("tokens kept of a record, within the model's context"),
    "truncation_mode": _mapped("the first tokens are kept", "keep_start"),
    "shuffle_dataset": _refusal(
        "units are drawn independently, and a seeded order would break the promise; leave it out"
    ),
    "packing": _refusal(
        "units that share a row are in each other's gradient, so no clip bounds one unit's; "
        "leave it out"
    ),
    "packing_strategy": _harmless("records of different units never share a row"),
    "padding_free": _refusal("it packs records into one row, as packing does; leave it out"),
    "pad_to_multiple_of": _harmless("padding has no part in the loss"),
    "eval_packing": _refusal("records are judged one by one; leave it out"),
    "completion_only_loss": _mapped("the loss is on the completion only", None, True),
    "assistant_only_loss": _mapped("of chats, the loss is always on the assistant's turns only"),
    "loss_type": _mapped(_LOSS, "nll"),
    "activation_offloading": _refusal(
        "gradient_checkpointing saves memory without it; leave it out"
    ),
}
FIELDS: Mapping[str, Field] = {**TRAINING, **SFT}


def check_fields(args: Any) -> frozenset[str]:
    """Raise SpecError for the first option that would break the guarantee, by name.

    Returns:
        Names of the fields that are not at their defaults.
    """
    # Made for the same device: the class asks whether it has bfloat16, which may be the default.
    default = type(args)(output_dir=args.output_dir, use_cpu=args.use_cpu)
    changed = set()
    for field in dataclasses.fields(args):
        value, usual = _plain(getattr(args, field.name)), _plain(getattr(default, field.name))
        rule = FIELDS.get(field.name, _refusal("it is not known here; leave it out"))
        if value == usual:
            continue
        changed.add(field.name)
        if rule.kind == "refused":
            raise SpecError(f"{field.name}={_short(value)}: {rule.text}")
        if rule.choices is None:
            continue
        for part in value if isinstance(value, list) else [value]:
            # A tracker may say where it writes: csv:FILE.
            name = part.partition(":")[0] if isinstance(part, str) else part
            if name not in rule.choices:
                raise SpecError(
                    f"{field.name}={_short(part)}: not to be had here; choose among "
                    f"{', '.join(map(str, rule.choices))}"
                )
    return frozenset(changed)


def table() -> str:
    """Return the table of all fields that are known, as Markdown."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    words = {
        "mapped": "mapped",
        "harmless": "ignored: harmless",
        "refused": "refused unless at its default",
    }
    for title, fields in (("TrainingArguments", TRAINING), ("SFTConfig (TRL)", SFT)):
        yield from ("", f"| {title} | here | |", "|---|---|---|")
        for name, field in sorted(fields.items()):
            text = field.text
            if field.choices is not None:
                text += f" ({', '.join(map(str, field.choices))})"
            yield f"| `{name}` | {words[field.kind]} | {text} |"


def _plain(value: Any) -> Any:
    """Return a value that can be compared: enumerations by their text, objects by their content."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _short(value: object) -> str:
    return f"{value!r:.100}"
