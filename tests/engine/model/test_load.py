"""A base is a whole causal LM that fits together, or is refused in one sentence that says why."""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from taciturn.engine.model.load import architecture, load_base
from taciturn.errors import MissingDependencyError, ModelError, SpecError, TaciturnError
from taciturn.llm import LLM
from taciturn.spec import PerformanceSpec

WEIGHTS = "model.safetensors"
TEXTS = [f"patient {i} has a cough" for i in range(8)]
QUICK: dict[str, Any] = {"target_epsilon": 8, "steps": 1, "batch_size": 4}


def load(folder: Path) -> Any:
    return load_base(str(folder), PerformanceSpec())


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of a base that may be spoilt."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "base"))


def configured(folder: Path, name: str = "config.json", **changes: Any) -> Path:
    """The same folder with other fields in one of its JSON files."""
    path = folder / name
    fields = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(fields | changes))
    return folder


def rewritten(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.fixture
def save(tiny_medical: Path, tmp_path: Path) -> Callable[[Any], Path]:
    """A model -> its folder, with the embedded tokenizer."""

    def write(model: Any) -> Path:
        model.save_pretrained(tmp_path / "saved")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_medical / name, tmp_path / "saved")
        return tmp_path / "saved"

    return write


SMALL: dict[str, Any] = {
    "vocab_size": 6144,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda old: {f"_orig_mod.{name}": value for name, value in old.items()}, "lacks weights"),
        (lambda old: dict(list(old.items())[1:]), "lacks weights"),
        (lambda old: old | {"score.weight": torch.ones(2, 16)}, r"no place for \(1: score.weight"),
        (
            lambda old: old | {"model.norm.weight": torch.ones(17)},
            r"of other shapes \(1: model.norm.weight",
        ),
    ],
)
def test_weights_of_another_model_are_refused(folder: Path, change: Any, message: str) -> None:
    rewritten(folder, change)
    with pytest.raises(ModelError, match=message):
        load(folder)


def test_what_a_model_makes_itself_may_be_in_the_checkpoint_or_not(folder: Path) -> None:
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    load(rewritten(folder, lambda old: old | {buffer: torch.ones(4)}))


@pytest.mark.parametrize(
    "build",
    [
        lambda: hf.BertForMaskedLM(hf.BertConfig(**SMALL)),
        lambda: hf.LlamaForSequenceClassification(hf.LlamaConfig(**SMALL)),
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=6144, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
        ),
    ],
    ids=["masked", "classifier", "encoder-decoder"],
)
@pytest.mark.parametrize("epsilon", [8, "unlimited"])
def test_another_kind_of_model_is_refused(
    build: Callable[[], Any], save: Callable[[Any], Path], epsilon: Any
) -> None:
    folder = save(build())
    with pytest.raises(ModelError, match="not a causal language model, which continues a text"):
        LLM(str(folder)).fit(TEXTS, **QUICK | {"target_epsilon": epsilon})
    with pytest.raises(ModelError, match="not a causal language model"):
        architecture(str(folder))


@pytest.mark.parametrize("epsilon", [8, "unlimited"])
@pytest.mark.parametrize("method", ["auto", "full"])
def test_an_encoder_under_another_name_is_found_out(
    save: Callable[[Any], Path], epsilon: Any, method: Any
) -> None:
    """Its config says nothing: what its logits depend on does."""
    folder = save(hf.BertLMHeadModel(hf.BertConfig(**SMALL, is_decoder=False)))
    with pytest.raises(ModelError, match="predicts a token from those that come after it"):
        LLM(str(folder)).fit(TEXTS, **QUICK | {"target_epsilon": epsilon, "method": method})


@pytest.mark.parametrize("special", [False, True])
def test_tokens_without_an_embedding(folder: Path, special: bool) -> None:
    """Those that may stand in a text; a special one that no record begins or ends with may not."""
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([hf.AddedToken("<|image|>", special=special)], special_tokens=special)
    tokenizer.save_pretrained(folder)
    if special:
        with pytest.raises(SpecError, match=r"id 6144, .* ids below 6144; leave that token out"):
            LLM(str(folder)).sample(["<|image|>"], max_new_tokens=1)
        with pytest.raises(SpecError, match="leave that token out"):
            LLM(str(folder)).log_probability("a", "<|image|>")
    else:
        with pytest.raises(ModelError, match=r"'<\|image\|>' with id 6144.*embeddings\(6145\)"):
            LLM(str(folder)).fit(TEXTS, **QUICK)


def test_an_end_without_an_embedding(folder: Path) -> None:
    tokenizer = hf.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<|end|>"})
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"'<\|end\|>' with id 6144"):
        load(folder)


@pytest.mark.parametrize("field", ["bos_token_id", "eos_token_id", "pad_token_id"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_configuration_that_names_tokens_beyond_the_vocabulary(
    folder: Path, field: str, name: str
) -> None:
    """They are no tokens of this model: it is fitted without; no embedding is padding there."""
    configured(folder, name, **{field: 9999})
    if (field, name) == ("pad_token_id", "config.json"):
        with pytest.raises(ModelError, match="cannot be loaded: AssertionError: Padding_idx"):
            load(folder)
    else:
        LLM(str(folder)).fit(TEXTS, **QUICK).sample(["The"], max_new_tokens=2)


@pytest.mark.parametrize(
    "defaults",
    [
        {"do_sample": False, "temperature": 0.6, "top_p": 0.9},
        {"repetition_penalty": 1.3, "suppress_tokens": [5, 6], "num_beams": 2},
    ],
)
def test_defaults_of_generation_break_no_fit(
    folder: Path, tmp_path: Path, defaults: dict[str, Any]
) -> None:
    configured(folder, "generation_config.json", **defaults)
    """They stay with the model for others, and are not ours."""
    model = LLM(str(folder)).fit(TEXTS, **QUICK | {"method": "full"}, output=tmp_path / "out")
    model.sample(["The"], max_new_tokens=2)
    LLM(str(tmp_path / "out")).sample(["The"], max_new_tokens=2)
    saved = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    for name in defaults.keys() - {"do_sample"}:
        assert saved[name] == defaults[name]


@pytest.mark.parametrize("whole", [False, True])
def test_an_adapter_is_no_base(folder: Path, tmp_path: Path, whole: bool) -> None:
    model = hf.AutoModelForCausalLM.from_pretrained(folder)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    if whole:  # as some save it: beside the base's configuration
        shutil.copy(folder / "config.json", tmp_path / "adapter")
    for attempt in (
        lambda model: model.fit(TEXTS, **QUICK),
        lambda model: model.sample(["The"]),
        lambda model: model.plan(n_units=100, target_epsilon=8),
    ):
        with pytest.raises(ModelError, match=r"an adapter of .*base, not a whole model; merge it"):
            attempt(LLM(str(tmp_path / "adapter")))


def test_a_tokenizer_that_takes_another_package(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")
    if importlib.util.find_spec("sentencepiece") is None:
        with pytest.raises(MissingDependencyError, match="pip install sentencepiece protobuf"):
            load(folder)
    else:
        with pytest.raises(ModelError, match="cannot be loaded"):
            load(folder)  # one token is no tokenizer


def moe(kind: str) -> Any:
    configs: dict[str, Callable[[], Any]] = {
        "llama4": lambda: hf.Llama4TextConfig(
            **SMALL, intermediate_size_mlp=24, num_key_value_heads=1, head_dim=8,
            num_local_experts=2, num_experts_per_tok=1,
        ),
        "phimoe": lambda: hf.PhimoeConfig(**SMALL, num_key_value_heads=1, num_local_experts=2),
        "deepseek": lambda: hf.DeepseekV3Config(
            **SMALL, num_key_value_heads=2, moe_intermediate_size=12, n_routed_experts=4, n_group=1,
            topk_group=1, num_experts_per_tok=2, first_k_dense_replace=0, q_lora_rank=8,
            kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8,
        ),
        "mamba": lambda: hf.MambaConfig(
            vocab_size=6144, hidden_size=16, num_hidden_layers=1, state_size=4
        ),
    }  # fmt: skip
    torch.manual_seed(0)
    return hf.AutoModelForCausalLM.from_config(configs[kind]())


@pytest.mark.parametrize("kind", ["llama4", "phimoe", "deepseek"])
def test_layers_that_only_look_linear_get_no_adapter(
    kind: str, save: Callable[[Any], Path]
) -> None:
    """A router is derived from nn.Linear and gives a choice; PEFT leaves shared experts out."""
    folder = save(moe(kind))
    for epsilon in (8, "unlimited"):
        LLM(str(folder)).fit(TEXTS, **QUICK | {"target_epsilon": epsilon})


def test_loads_that_overlap_leave_the_level_of_logging_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = transformers_logging.get_verbosity()
    entered, resumed = threading.Semaphore(0), [threading.Event(), threading.Event()]
    waits = list(resumed)
    real = hf.AutoConfig.from_pretrained

    def slow(*args: Any, **options: Any) -> Any:
        if waits:  # the first call of each load; a tokenizer may ask for a configuration, too
            event = waits.pop(0)
            entered.release()
            assert event.wait(60)
        return real(*args, **options)

    monkeypatch.setattr(hf.AutoConfig, "from_pretrained", slow)
    with ThreadPoolExecutor(2) as pool:
        loads = []
        for _ in resumed:
            loads.append(pool.submit(load, folder))
            assert entered.acquire(timeout=60)
        for event, started in zip(resumed, loads, strict=True):
            event.set()
            assert started.result().name == str(folder)
    assert transformers_logging.get_verbosity() == level


def test_whatever_a_library_says_of_a_base_is_one_sentence(
    save: Callable[[Any], Path], tmp_path: Path
) -> None:
    folder = save(moe("mamba"))
    with pytest.raises(ModelError, match=r"\(MambaForCausalLM\) cannot be fitted as asked: .*PEFT"):
        LLM(str(folder)).fit(TEXTS, **QUICK, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("error", [KeyError("dt_proj"), AttributeError("no dtype"), AssertionError])
@pytest.mark.parametrize("at", ["own_text", "get_peft_model", "unigram"])
def test_any_exception_while_a_base_is_tried(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, error: Any, at: str
) -> None:
    def fail(*arguments: Any, **named: Any) -> Any:
        raise error

    monkeypatch.setattr(f"taciturn.engine.model.lora.{at}", fail)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM\) cannot be fitted as asked: \w*Error"):
        LLM(str(tiny_llama)).fit(TEXTS, **QUICK)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("embed_tokens", "'embed_tokens' of LlamaForCausalLM is Embedding, and not a linear layer"),
        ("self_attn", "is LlamaAttention, and not a linear layer; linear layers are: "),
        ("q_prj", "is not there; linear layers are: q_proj"),
    ],
)
@pytest.mark.parametrize("method", ["auto", "lora"])
def test_targets_that_are_not_linear(
    tiny_llama: Path, target: str, message: str, method: Any
) -> None:
    with pytest.raises(SpecError, match=message):
        LLM(str(tiny_llama)).fit(TEXTS, **QUICK, target_modules=[target], method=method)


@pytest.mark.parametrize("method", ["auto", "lora"])
def test_the_output_layer_as_a_target(tiny_llama: Path, tmp_path: Path, method: Any) -> None:
    out = tmp_path / "out"
    LLM(str(tiny_llama)).fit(
        TEXTS, **QUICK, target_modules=["lm_head"], method=method, output=out, learning_rate=0.1
    )
    saved = load_file(out / "adapter_model.safetensors")
    assert {name.rsplit(".", 2)[0] for name in saved} == {"base_model.model.lm_head"}


def test_an_adapter_whose_weights_have_no_place_is_refused(
    tiny_llama: Path, tmp_path: Path
) -> None:
    """PEFT would load the others, warn, and write as the base does."""
    out = tmp_path / "out"
    LLM(str(tiny_llama)).fit(TEXTS, **QUICK, output=out)
    path = out / "adapter_model.safetensors"
    saved = {name.replace("layers.", "blocks."): value for name, value in load_file(path).items()}
    save_file(saved, path, metadata={"format": "pt"})
    with pytest.raises(TaciturnError, match="and its base do not match"):
        LLM(str(out)).sample(["The"], max_new_tokens=1)
