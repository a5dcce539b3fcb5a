"""Adapters on a base in 8 or 4 bits: gradients are exact, and records stay apart."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from support.tiny_models import build, random_batch, units_of, with_lora
from taciturn.engine.model.load import LoadedModel, load_base
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.ranks import ALONE
from taciturn.engine.privacy.verification import public_batch, verify
from taciturn.engine.training.trainable import trainable
from taciturn.errors import ModelError
from taciturn.planning.plan import AdapterPlan
from taciturn.spec import FitSpec, PerformanceSpec

pytest.importorskip("bitsandbytes", reason="needs the quantization extra")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama with one feature far larger than the others, as real models have."""
    config = hf.LlamaConfig(
        vocab_size=6144,  # that of the embedded tokenizer
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight[3] = 30.0
    path = tmp_path_factory.mktemp("outliers")
    model.save_pretrained(path)
    return path


def loss_of(folder: Path, **options: Any) -> CausalLmLoss:
    quantized = hf.AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=hf.BitsAndBytesConfig(**options), dtype=torch.float32
    )
    return CausalLmLoss(with_lora(quantized.eval()))


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32}
INT8_BY_ROWS = {"load_in_8bit": True, "llm_int8_threshold": 0.0}
BATCH = random_batch([9, 5, 12, 7], [0, 1, 1, 2])


@pytest.mark.parametrize("options", [NF4, INT8_BY_ROWS], ids=["nf4", "int8"])
def test_adapters_are_verified(folder: Path, options: dict[str, Any]) -> None:
    verify(loss_of(folder, **options), public_batch(vocab_size=61))


@pytest.mark.parametrize("options", [NF4, INT8_BY_ROWS], ids=["nf4", "int8"])
def test_records_stay_apart(folder: Path, options: dict[str, Any]) -> None:
    loss = loss_of(folder, **options)
    with torch.no_grad():
        torch.testing.assert_close(loss(units_of(BATCH, [0])), loss(BATCH)[:1], rtol=1e-6, atol=0)


def test_outlier_columns_are_a_property_of_the_batch(folder: Path) -> None:
    """Why int8 needs llm_int8_threshold=0: by default one record's outlier changes the others."""
    loss = loss_of(folder, load_in_8bit=True)
    batches = [random_batch([9, 5, 12, 7], [0, 1, 1, 2], seed=seed) for seed in range(10)]
    with torch.no_grad():
        moved = [float(loss(units_of(each, [0])) - loss(each)[:1]) for each in batches]
    assert max(map(abs, moved)) > 1e-6


@pytest.mark.parametrize("already", [False, True], ids=["here", "as it comes"])
def test_a_base_in_int8_is_loaded_without_outlier_columns(
    folder: Path, tiny_medical: Path, tmp_path: Path, already: bool
) -> None:
    spec = PerformanceSpec(dtype="float32", quantization=None if already else "int8")
    if already:
        config = hf.BitsAndBytesConfig(load_in_8bit=True)
        hf.AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, dtype=torch.float32
        ).save_pretrained(tmp_path)
    else:
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_medical / name, tmp_path)
    loss = CausalLmLoss(with_lora(load_base(str(tmp_path), spec).model))
    batches = [random_batch([9, 5, 12, 7], [0, 1, 1, 2], seed=seed) for seed in range(10)]
    with torch.no_grad():
        for each in batches:
            alone = loss(units_of(each, [0]))
            torch.testing.assert_close(alone, loss(each)[:1], rtol=1e-6, atol=0)


def test_a_base_in_nf4_is_computed_alike_with_and_without_gradients(tiny_medical: Path) -> None:
    """Its layers of 688 outputs cannot be repacked."""
    spec = PerformanceSpec(dtype="float32", quantization="nf4")
    loss = CausalLmLoss(with_lora(load_base(str(tiny_medical), spec).model))
    batch = random_batch([9, 5], [0, 1])
    with torch.no_grad():
        before = loss(batch)
    torch.testing.assert_close(loss(batch).detach(), before, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["fp8", "fbgemm_fp8", "mxfp4", "gptq", "compressed-tensors"])
def test_quantisers_that_are_not_known_are_refused(kind: str) -> None:
    """A checkpoint brings its own: fp8 rounds activations by the largest of the whole batch."""
    model = build("llama")
    model.config.quantization_config = {"quant_method": kind}
    base = LoadedModel("base", model, None, context_length=64)
    spec = FitSpec(target_epsilon=3, method="full")
    with pytest.raises(ModelError, match=f"quantised by '{kind}'.*nf4 or int8"):
        trainable(base, spec, AdapterPlan(method="full"), ALONE)
