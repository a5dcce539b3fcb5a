"""A unit's gradient is the same, bit for bit, whoever else is drawn: any dtype, form and method.

Then removing a unit moves the clipped sum by that unit's share, and by nothing else but the
rounding of float64. Rounding that depends on neighbours would add up: hundreds of identical records
would all be moved the same way.

Shapes: B sequences, T tokens, P parameters.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from support.tiny_models import CONFIGS, VOCABULARY, build, with_lora
from taciturn.data.tokens.store import TokenizedDataset, TokenizedRecord
from taciturn.engine.model.experts import use_exact_experts
from taciturn.engine.model.loss import CausalLmLoss
from taciturn.engine.privacy.clipping import MOST_UNITS, ROUNDING, clip_and_sum, merge_disjoint
from taciturn.engine.privacy.forms import Form
from taciturn.engine.privacy.per_example import per_example_gradients, sum_parts
from taciturn.engine.privacy.types import PerUnitGradients, UnitBatch
from taciturn.engine.privacy.verification import (
    _company,
    long_public_batch,
    losses_same_in_company,
    public_batch,
    same_in_company,
    verify,
)
from taciturn.engine.training.batch import BatchLimits, microbatches
from taciturn.errors import UnsupportedLayerError

MAX_TOKENS = 48
MIXTURES = ("mixtral", "qwen2-moe", "qwen3-moe")
DTYPES = (torch.float32, torch.bfloat16)


def loss_of(name: str, method: str, dtype: torch.dtype) -> CausalLmLoss:
    """LoRA matrices are fp32 whatever the base is, as in a fit."""
    model = build(name)
    use_exact_experts(model)
    model = model.to(dtype)
    if method == "lora":
        model = with_lora(model.requires_grad_(False))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return CausalLmLoss(model)


class Units:
    """Stands in for a data set: units of records with the given token ids."""

    def __init__(self, units: list[list[list[int]]]) -> None:
        self.units = units

    def records(self, unit: int) -> list[TokenizedRecord]:
        return [
            TokenizedRecord(np.array(ids, dtype=np.int32), np.arange(len(ids)) > 0)
            for ids in self.units[unit]
        ]


def random_units(count: int, seed: int = 0, records: int = 1) -> list[list[list[int]]]:
    """Of all lengths that there are."""
    generator = np.random.default_rng(seed)
    return [
        [
            generator.integers(4, VOCABULARY, size=generator.integers(2, MAX_TOKENS + 1)).tolist()
            for _ in range(generator.integers(1, records + 1))
        ]
        for _ in range(count)
    ]


def gradients_of(
    loss: CausalLmLoss,
    units: list[list[list[int]]],
    unit: int,
    limits: BatchLimits,
    form: Form,
    drawn: list[int],
) -> dict[str, Tensor]:
    """One unit's gradient in a draw, found by its first token, which it alone has."""
    data = cast(TokenizedDataset, Units(units))
    first = units[unit][0][0]
    for group in microbatches(data, np.array(drawn), limits):
        rows = (group[0].input_ids_BT[:, 0] == first).nonzero()[:, 0]
        if len(rows):
            place = int(group[0].unit_of_B[rows[0]])
            found = sum_parts(loss, group, form)
            norms = {
                f"|{name}|": value.squared_norms()[place]
                for name, value in found.values.items()
                if not isinstance(value, Tensor)
            }
            return {name: value[place] for name, value in found.dense().items()} | norms
    raise AssertionError("the unit was not drawn")


PROBE = 1  # a token that is in no other record
COMPANIES: dict[str, list[list[list[int]]]] = {
    "random": random_units(40, seed=1),
    "very long": [[[7] * MAX_TOKENS]] * 40,
    "of many records": random_units(20, seed=2, records=5),
    "not finite": [[[3, 3, 3]]] * 5 + random_units(9, seed=3),
}


@pytest.mark.parametrize("form", [Form.INSTANTIATE, Form.FACTORS, Form.AUTO])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "method"), [("llama", "lora"), ("llama-tied", "full"), ("mixtral", "lora")]
)
def test_the_same_alone_and_in_any_company(
    name: str, method: str, dtype: torch.dtype, form: Form
) -> None:
    loss = loss_of(name, method, dtype)
    if name != "llama-tied":  # there, the token's logit would be NaN in every record
        with torch.no_grad():
            loss.model.get_input_embeddings().weight[3] = float("nan")  # type: ignore[operator]
    limits = BatchLimits(512, 1 if name in MIXTURES else 12, MAX_TOKENS, packed=form is Form.AUTO)
    for probe in ([[PROBE, 9, 8, 7, 6, 5]], [[PROBE, *range(4, 40)], [5, 6], [9] * 30]):
        alone = gradients_of(loss, [probe], 0, limits, form, [0])
        copies = [[[2 if token == PROBE else token for token in row] for row in probe]] * 512
        for others in (*COMPANIES.values(), copies if form is Form.AUTO else copies[:30]):
            units = [*others[: len(others) // 2], probe, *others[len(others) // 2 :]]
            place = len(others) // 2
            generator = np.random.default_rng(0)
            for drawn in (list(range(len(units))), generator.permutation(len(units)).tolist()):
                beside = gradients_of(loss, units, place, limits, form, drawn)
                assert alone.keys() == beside.keys()
                assert all(torch.equal(alone[key], beside[key]) for key in alone)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_is_exact_or_said_not_to_be(name: str) -> None:
    """Experts see as many rows as tokens choose them: their units run one by one."""
    for method in ("lora", "full"):
        for dtype in DTYPES:
            loss = loss_of(name, method, dtype)
            found = [same_in_company(loss, VOCABULARY, (6, width)) for width in (16, 40)]
            assert found == [name not in MIXTURES] * 2
            assert same_in_company(loss, VOCABULARY, (1, 16))
            assert losses_same_in_company(loss, VOCABULARY, (6, 16)) == (name not in MIXTURES)


ROUTED = {
    "gpt-oss": lambda: hf.GptOssConfig(**SIZES, head_dim=8, sliding_window=8),
    "granite-moe": lambda: hf.GraniteMoeConfig(**SIZES),
}
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 3,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ROUTED)
def test_experts_of_another_make_are_told(name: str, dtype: torch.dtype) -> None:
    """In bf16 transformers gives all experts' rows to one grouped product of constant shape."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(ROUTED[name]()).eval().to(dtype)
    loss = CausalLmLoss(with_lora(model, target_modules=["q_proj", "v_proj"]))
    verify(loss, public_batch(VOCABULARY))
    assert not same_in_company(loss, VOCABULARY, (6, 16))


class MixesThree(CausalLmLoss):
    """Of twelve rows, those of a unit of three meet those of the unit before."""

    def forward(self, batch: UnitBatch) -> Tensor:
        """See CausalLmLoss."""
        losses_B = super().forward(batch)
        return (
            losses_B * (1 + 1e-6 * losses_B.roll(3).detach()) if len(losses_B) == 12 else losses_B
        )


@pytest.mark.parametrize(("name", "method"), [("llama", "lora"), ("llama-tied", "full")])
def test_units_of_several_records_have_companies_of_their_own(name: str, method: str) -> None:
    model = build(name)
    model = with_lora(model.requires_grad_(False)) if method == "lora" else model
    for form in Form:
        assert same_in_company(CausalLmLoss(model), VOCABULARY, (4, 16), form, records=3)
        assert same_in_company(MixesThree(model), VOCABULARY, (4, 16), form)
        assert not same_in_company(MixesThree(model), VOCABULARY, (4, 16), form, records=3)
    batch = _company(CausalLmLoss(model), VOCABULARY, (4, 9), 1, lonely=True, records=3)
    assert batch.unit_of_B.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert batch.loss_weights_BT.any(1).nonzero().flatten().tolist() == [3, 4, 5]
    lengths = batch.loss_weights_BT[3:6].count_nonzero(1) + 1
    assert lengths.tolist() == [7, 6, 5]


METHODS = [("llama", "lora"), ("llama-tied", "full"), ("mixtral", "lora"), ("qwen3-moe", "full")]


@pytest.mark.parametrize("form", [Form.INSTANTIATE, Form.FACTORS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("name", "method", "count"),
    [(*each, 12 if each[0] in MIXTURES else 512) for each in METHODS]
    + [pytest.param(*each, 512, marks=pytest.mark.slow) for each in METHODS[2:]],
)
def test_removing_a_unit_moves_nobody_else(
    name: str, method: str, dtype: torch.dtype, form: Form, count: int
) -> None:
    """Through microbatches, sum_parts and clip_and_sum, as in a step; half of them identical."""
    loss, clip = loss_of(name, method, dtype), 0.3
    limits = BatchLimits(1024, 1 if name in MIXTURES else 16, MAX_TOKENS)
    some = random_units(count // 2)
    units = [*some, *[some[0]] * (count - len(some))]
    whole = clipped(loss, units, range(len(units)), limits, form, clip)
    for removed in (3, len(units) - 1):
        rest = [unit for unit in range(len(units)) if unit != removed]
        without = clipped(loss, units, rest, limits, form, clip)
        own = clipped(loss, units, [removed], limits, form, clip)
        assert float((whole - without).norm()) <= clip
        assert float((whole - without - own).norm()) <= 1e-11 * clip


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "method"), METHODS[:2])
def test_removing_a_unit_of_packed_records_moves_nobody_else(
    name: str, method: str, dtype: torch.dtype, form: Form
) -> None:
    loss, clip = loss_of(name, method, dtype), 0.3
    limits = BatchLimits(256, 8, MAX_TOKENS, packed=True)
    units = random_units(24, records=5)
    whole = clipped(loss, units, range(24), limits, form, clip)
    for removed in (3, 23):
        without = clipped(loss, units, {*range(24)} - {removed}, limits, form, clip)
        own = clipped(loss, units, [removed], limits, form, clip)
        assert float((whole - without).norm()) <= clip
        assert float((whole - without - own).norm()) <= 1e-11 * clip


def clipped(
    loss: CausalLmLoss,
    units: list[list[list[int]]],
    drawn: Any,
    limits: BatchLimits,
    form: Form,
    clip: float,
) -> Tensor:
    total = None
    for group in microbatches(cast(TokenizedDataset, Units(units)), np.array([*drawn]), limits):
        part = clip_and_sum(sum_parts(loss, group, form), clip)
        total = part if total is None else merge_disjoint(total, part)
    assert total is not None
    assert total.counts.n_units == len([*drawn])
    return torch.cat([value.flatten() for value in total.values.values()])


def test_room_for_rounding_is_what_sums_of_float64_need() -> None:
    """And a clipped unit leaves it, whatever its form."""
    assert 2 * MOST_UNITS**2 * 2.0**-53 < ROUNDING
    values = {"w": torch.randn(5, 30, 4, generator=torch.Generator().manual_seed(0))}
    for unit in range(5):
        one = {name: value[unit : unit + 1] for name, value in values.items()}
        total = clip_and_sum(PerUnitGradients(one, torch.zeros(1)), 0.25)
        assert float(total.values["w"].norm()) == pytest.approx(0.25 / (1 + ROUNDING), rel=1e-9)


class PerTensorRounding(nn.Module):
    """A linear layer whose activations are rounded to 8 bits by their largest, whoever's it is."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        step = x.detach().abs().max() / 127
        return cast(Tensor, self.linear(x + ((x / step).round() * step - x).detach()))


class LongRowsMix(nn.Module):
    """Adds a mean over the batch, but to long rows only."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 32:
            x = x + 0.1 * x.mean(0)
        return cast(Tensor, self.linear(x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding_by_the_whole_batch_is_refused(dtype: torch.dtype) -> None:
    """As checkpoints in fp8 do it: within 25%, and up to 1.10 C."""
    model = build("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj = PerTensorRounding(layer.mlp.down_proj)
    loss = CausalLmLoss(model.to(dtype))
    with pytest.raises(UnsupportedLayerError, match=r"influence each other|mixes records"):
        verify(loss, public_batch(VOCABULARY))
    assert not same_in_company(loss, VOCABULARY, (6, 16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_long_records_alone_meet_is_tried(dtype: torch.dtype) -> None:
    model = build("llama")
    for layer in model.model.layers:
        layer.mlp.down_proj = LongRowsMix(layer.mlp.down_proj)
    loss = CausalLmLoss(model.to(dtype))
    verify(loss, public_batch(VOCABULARY), long_public_batch(VOCABULARY, 32))
    with pytest.raises(UnsupportedLayerError, match=r"influence each other|mixes records"):
        verify(loss, public_batch(VOCABULARY), long_public_batch(VOCABULARY, 48))


def test_half_precision_is_verified_in_fp32_and_given_back() -> None:
    loss = loss_of("llama", "full", torch.bfloat16)
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    seen: list[torch.dtype] = []
    handle = loss.model.model.register_forward_pre_hook(
        lambda module, inputs: seen.append(next(module.parameters()).dtype)
    )
    verify(loss, public_batch(VOCABULARY))
    handle.remove()
    assert set(seen) == {torch.float32}
    for name, value in loss.state_dict().items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, before[name])


def test_fillers_are_not_counted() -> None:
    loss = loss_of("llama", "lora", torch.float32)
    data = cast(TokenizedDataset, Units([[[1, 5, 6]], [[4, 5]]]))
    ((batch,),) = microbatches(data, np.array([0, 1]), BatchLimits(1024, 8, MAX_TOKENS))
    assert (batch.n_units, batch.n_fillers, batch.records) == (8, 6, 2)
    gradients = per_example_gradients(loss, batch)
    assert not gradients.losses_U[2:].any()
    assert all(not value[2:].any() for value in gradients.dense().values())
    assert clip_and_sum(gradients, 1.0).counts.n_units == 2


def test_unit_batch_refuses_more_fillers_than_units() -> None:
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="n_fillers=2"):
        UnitBatch(ids, torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), 1, n_fillers=2)


@pytest.mark.parametrize("targets", [["q_proj", "k_proj"], ["v_proj"], ["lm_head"]])
def test_outliers_refuse_no_sound_choice_of_targets(targets: list[str]) -> None:
    """Queries and keys that meet nothing but copies have no gradient but rounding."""
    loss = CausalLmLoss(with_lora(build("llama").requires_grad_(False), target_modules=targets))
    verify(loss, public_batch(VOCABULARY), long_public_batch(VOCABULARY, 40))


def attending(loss: CausalLmLoss, attention: Any) -> CausalLmLoss:
    """The model with another attention."""
    ALL_ATTENTION_FUNCTIONS.register("planted", attention)
    loss.model.config._attn_implementation = "planted"  # type: ignore[union-attr]
    return loss


def plain_attention(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    out = F.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=kwargs["scaling"], enable_gqa=True
    )
    return out.transpose(1, 2).contiguous(), None


def mixing_attention(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """As one over packed rows without a mask between records: a little of the others is in it."""
    return plain_attention(module, q, k, v + 1e-3 * v.roll(1, 0), mask, **kwargs)


def unpadding_attention(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Exact, and as long as the longest record without its padding, as varlen kernels are."""
    padding_BT = (v == v[:, :, -1:]).all(-1).all(1)
    length = int((~padding_BT).any(0).nonzero().max()) + 1 if not padding_BT.all() else 1
    out, _ = plain_attention(module, *(each[:, :, :length] for each in (q, k, v)), mask, **kwargs)
    return F.pad(out, (0, 0, 0, 0, 0, q.shape[2] - length)), None


def test_attention_of_another_make_is_tried() -> None:
    loss = attending(loss_of("llama", "lora", torch.float32), plain_attention)
    verify(loss, public_batch(VOCABULARY))
    assert same_in_company(loss, VOCABULARY, (6, 16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_that_mixes_records_is_refused(dtype: torch.dtype) -> None:
    loss = attending(loss_of("llama", "lora", dtype), mixing_attention)
    with pytest.raises(UnsupportedLayerError, match=r"influence each other|mixes records"):
        verify(loss, public_batch(VOCABULARY))
    assert not same_in_company(loss, VOCABULARY, (6, 16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_attention_in_shapes_of_the_records_is_told(dtype: torch.dtype) -> None:
    """Its products have the shape of the longest record: their rounding is the company's."""
    loss = attending(loss_of("llama", "lora", dtype), unpadding_attention)
    verify(loss, public_batch(VOCABULARY))
    assert not same_in_company(loss, VOCABULARY, (6, 16))
