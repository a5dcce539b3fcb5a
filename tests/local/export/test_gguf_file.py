"""A GGUF file is the fitted model: for transformers, for llama.cpp, and by its metadata."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers as hf

from support.gguf_models import MODELS, save
from support.llama_cpp import Reader
from support.tiny_models import with_lora
from support.tiny_tokenizers import PROBES
from taciturn.engine.model import adapter
from taciturn.engine.model.load import LoadedModel, load_base
from taciturn.errors import AdapterError, ModelError
from taciturn.local.export import architectures, gguf_file
from taciturn.local.export.comparison import LIMITS, deviation
from taciturn.spec import PerformanceSpec

ABOUT: dict[str, str | float] = {
    "policy": "DP (epsilon=1)",
    "guarantee": "differential privacy",
    "epsilon": 1.0,
    "base_model": "some/base",
    "certificate_sha256": "ab" * 32,
}
# Families whose files have no place for an output layer of its own.
HEADLESS = ("gemma", "gemma2")


def load(folder: Path) -> LoadedModel:
    return load_base(str(folder), PerformanceSpec(dtype="float32", device="cpu"))


def layers(model: Any) -> list[str]:
    return [
        name
        for name, module in model.named_modules()
        if type(module).__name__ in ("Linear", "Conv1D") and "lm_head" not in name
    ]


def ids_of(base: LoadedModel, length: int = 48) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(5, len(base.tokenizer) - 5, (1, length), generator=generator)


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits[0].float()
    return found


@pytest.fixture(scope="module", params=MODELS)
def family(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """A base, and beside it the files of a model adapted on it, with the adapted one's logits."""
    name: str = request.param
    home = tmp_path_factory.mktemp(name)
    base = load(save(name, home / "base"))
    plan = gguf_file.make_plan(base, untied=False)
    head = [] if name in HEADLESS or MODELS[name][1].get("tie_word_embeddings") else ["lm_head"]
    heads = [] if name in ("gpt2", "gemma3") else head
    fitted = with_lora(base.model, target_modules=[*layers(base.model), *heads])
    torch.save(logits(fitted, ids_of(base)), home / "expected.pt")
    for weights in LIMITS:
        one = adapter.merged(fitted)  # type: ignore[arg-type]
        found = gguf_file.write(home / f"model-{weights}.gguf", plan, one, weights, ABOUT)
        assert found.deviation <= LIMITS[weights]
    return name, home


@pytest.mark.filterwarnings("ignore:.*original_max_position_embeddings")
def test_transformers_reads_the_adapted_model_back(family: tuple[str, Path]) -> None:
    name, home = family
    if name == "gemma":
        pytest.skip("transformers reads no GGUF file of the first Gemma")
    base = load(home / "base")
    expected = torch.load(home / "expected.pt", weights_only=True)
    # What a file says beyond the common settings, such as scaled positions, transformers leaves
    # unread; of Mistral it takes the file's, since it knows the file as Llama's.
    config: Any = base.model.config
    own = None if name == "mistral" else hf.AutoConfig.from_pretrained(home / "base")
    if own is not None:
        own.tie_word_embeddings = config.tie_word_embeddings
    options = {} if own is None else {"config": own}
    if (kind := getattr(hf, "GgufConfig", None)) is not None:
        options["quantization_config"] = kind(dequantize=True)
    for weights, limit in LIMITS.items():
        model = hf.AutoModelForCausalLM.from_pretrained(
            home, gguf_file=f"model-{weights}.gguf", dtype=torch.float32, **options
        )
        found = logits(model, ids_of(base))
        assert deviation(expected, found) <= limit
        if weights == "f32":
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    tokenizer = hf.AutoTokenizer.from_pretrained(home, gguf_file="model-f16.gguf")
    if name != "llama-unigram":  # transformers takes every unigram tokenizer for T5's
        for text in PROBES:
            own_ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == own_ids
    assert tokenizer.chat_template == base.tokenizer.chat_template
    assert tokenizer.eos_token == base.tokenizer.eos_token


def test_llama_cpp_computes_and_cuts_text_as_transformers(family: tuple[str, Path]) -> None:
    name, home = family
    base = load(home / "base")
    expected = torch.load(home / "expected.pt", weights_only=True)
    for weights, limit in LIMITS.items():
        reader = Reader(home / f"model-{weights}.gguf")
        found = torch.from_numpy(reader.logits(ids_of(base)[0].tolist()))
        # It keeps keys and values in f16, and rounds inputs of q8_0 products, too.
        assert deviation(expected, found) <= max(2 * limit, 1e-2)
    for text in PROBES:
        if name in ("llama", "mistral", "llama-unigram") and text.startswith(" "):
            continue  # llama.cpp writes one more space before a text that begins with one
        own_ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert reader.tokens(text) == own_ids, text
    for token in ("<|im_end|>", "<|im_start|>"):
        assert reader.tokens(token, special=True) == [base.tokenizer.convert_tokens_to_ids(token)]
    assert reader.end == base.tokenizer.eos_token_id


def test_long_positions_are_those_of_transformers(tmp_path: Path) -> None:
    base = load(save("phi3-long", tmp_path / "base"))
    path = tmp_path / "model.gguf"
    plan = gguf_file.make_plan(base, untied=False)
    assert any("positions of long texts" in note for note in plan.notes)
    expected = logits(base.model, ids_of(base, 300))
    gguf_file.write(path, plan, base.model, "f32", ABOUT)
    found = torch.from_numpy(Reader(path, context=512).logits(ids_of(base, 300)[0].tolist()))
    assert deviation(expected, found) < 1e-2


def test_metadata_say_what_is_promised(tmp_path: Path) -> None:
    base = load(save("gemma3", tmp_path / "base"))
    plan = gguf_file.make_plan(base, untied=False)
    gguf_file.write(tmp_path / "a.gguf", plan, base.model, "f16", ABOUT)
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    said = {name: field.contents() for name, field in fields.items()}
    assert {f"taciturn.{name}": value for name, value in ABOUT.items()}.items() <= said.items()
    assert said["general.architecture"] == "gemma3"
    assert said["general.base_model.0.name"] == "some/base"
    assert said["gemma3.attention.sliding_window"] == 8
    assert said["gemma3.attention.key_length"] == 32
    assert said["gemma3.rope.freq_base"] == 1e6
    assert said["tokenizer.ggml.eos_token_id"] == base.tokenizer.eos_token_id
    kinds = said["tokenizer.ggml.token_type"]
    assert kinds[-3:] == [gguf.TokenType.UNUSED] * 3  # embeddings without a token
    assert kinds.count(gguf.TokenType.BYTE) == 256


def test_window_that_llama_cpp_ignores_ends_the_context(tmp_path: Path) -> None:
    base = load(save("mistral", tmp_path))
    plan = gguf_file.make_plan(base, untied=False)
    assert plan.description.context_length == 64
    assert "no sliding window" in plan.notes[0]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar=16"),
        ("gemma2", {"attn_logit_softcapping": None}, "softcapping"),
        ("gemma3", {"layer_types": ["full_attention"] * 7}, "layer_types"),
        ("llama", {"hidden_act": "gelu"}, "activation=gelu"),
        ("qwen3", {"attention_bias": True}, "no place for model.layers.0.self_attn.q_proj.bias"),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope scaling=dynamic",
        ),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    base = load(save(name, tmp_path, **changes))

    def plan() -> None:
        description = gguf_file.make_plan(base, untied=False).description
        architectures.places(base.model, description)

    with pytest.raises(ModelError, match=message):
        plan()


def test_own_output_layer_of_gemma2_is_refused(tmp_path: Path) -> None:
    base = load(save("gemma2", tmp_path))
    with pytest.raises(ModelError, match="takes the embedding's"):
        gguf_file.make_plan(base, untied=True)


def test_text_part_of_a_model_that_also_sees_is_exported(tmp_path: Path) -> None:
    text = hf.AutoModelForCausalLM.from_pretrained(save("gemma3", tmp_path))
    eyes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    vision = {**eyes, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = hf.Gemma3Config(
        text_config=text.config.to_dict(), vision_config=vision, mm_tokens_per_image=4
    )
    whole = hf.Gemma3ForConditionalGeneration(config).eval()
    part = architectures.text_model(whole)
    names = {name for name, _ in part.named_parameters()}
    assert names == {name for name, _ in text.named_parameters()}
    ids = torch.arange(5, 25)[None]
    torch.testing.assert_close(logits(part, ids), logits(whole, ids))
    description = architectures.describe(part.config, part.config.vocab_size)
    assert len(architectures.places(part, description)) == len(names)


def test_weight_in_a_wrong_place_is_not_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = load(save("llama", tmp_path / "base"))
    plan = gguf_file.make_plan(base, untied=False)
    right = gguf.quants.dequantize
    monkeypatch.setattr(gguf.quants, "dequantize", lambda data, kind: right(data, kind) * 1.01)
    with pytest.raises(AdapterError, match="was not kept as it was"):
        gguf_file.write(tmp_path / "a.gguf", plan, base.model, "q8_0", ABOUT)


def test_f16_has_no_room_for_large_weights(tmp_path: Path) -> None:
    base = load(save("llama", tmp_path / "base"))
    plan = gguf_file.make_plan(base, untied=False)
    with torch.no_grad():
        base.model.model.layers[0].mlp.up_proj.weight[0, 0] = 1e5  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="f16 ends at 65504"):
        gguf_file.write(tmp_path / "a.gguf", plan, base.model, "f16", ABOUT)


@pytest.mark.parametrize("kind", ["q8_0", "f16"])
def test_rounding_is_that_of_the_format(kind: Any) -> None:
    """The bound holds for every weight of hard cases, and a little less than it does not."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((64, 64)).astype(np.float32)
    weights[0], weights[1, 0] = 0, 1000
    named = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "f16": gguf.GGMLQuantizationType.F16}[kind]
    rounded = gguf.quants.dequantize(gguf.quants.quantize(weights, named), named)
    place = architectures.Place("weight", "weight", architectures.Layout())
    gguf_file._check_rounding(place, weights, rounded, named)
    rounded[5] += 0.02 * weights[5]
    with pytest.raises(AdapterError):
        gguf_file._check_rounding(place, weights, rounded, named)
