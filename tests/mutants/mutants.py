"""Every mutant and the check that must kill it."""

from __future__ import annotations

from mutants import broken_mechanisms as mechanisms
from mutants import broken_parts as parts
from mutants import broken_ranks as ranks
from mutants import broken_steps as steps
from mutants.variants import Variant

MUTANTS: dict[str, tuple[Variant, str]] = {
    # name: (the mutant, the check that must kill it)
    "half of sigma": (Variant(mechanism=mechanisms.HalfNoise), "noise_scale"),
    "no noise": (Variant(mechanism=mechanisms.NoNoise), "noise_scale"),
    "noise repeated within a gradient": (
        Variant(mechanism=mechanisms.NoiseOfAnEighth),
        "noise_is_independent",
    ),
    "no clip": (Variant(mechanism=mechanisms.NoClip), "sensitivity"),
    "clip per microbatch": (
        Variant(mechanism=mechanisms.ClipPerMicrobatch),
        "sum_of_clipped_units",
    ),
    "margin by the form": (Variant(mechanism=mechanisms.MarginByForm), "forms_do_not_show"),
    "clip per parameter": (Variant(mechanism=mechanisms.ClipPerParameter), "sensitivity"),
    "unit that is not finite included": (
        Variant(mechanism=mechanisms.NotFiniteIncluded),
        "not_finite",
    ),
    "units left out forgotten": (
        Variant(mechanism=mechanisms.OutstandingForgotten),
        "outstanding_units",
    ),
    "units left out added twice": (
        Variant(mechanism=mechanisms.OutstandingTwice),
        "outstanding_units",
    ),
    "units left out added as they are": (
        Variant(mechanism=mechanisms.OutstandingUnclipped),
        "outstanding_units",
    ),
    "others added in place of units left out": (
        Variant(mechanism=mechanisms.OutstandingMistaken),
        "outstanding_units",
    ),
    "shuffle": (Variant(mechanism=mechanisms.Shuffle), "poisson_sizes"),
    "units in the order of the data": (Variant(mechanism=mechanisms.InOrder), "poisson_sizes"),
    "neighbours drawn together": (Variant(mechanism=mechanisms.ByRowOrder), "poisson_pairs"),
    "drawn oftener than said": (Variant(mechanism=mechanisms.OftenerThanSaid), "poisson_inclusion"),
    "batch filled from fewer units than declared": (
        Variant(mechanism=mechanisms.ShareOfThoseThere),
        "declared_units",
    ),
    "draw among declared units": (Variant(mechanism=mechanisms.DeclaredOnly), "declared_units"),
    "double draw": (Variant(step=steps.step_with_two_draws), "each_unit_once"),
    "noise on one microbatch only": (
        Variant(step=steps.step_with_noise_on_the_first_microbatch),
        "one_release",
    ),
    "divided by what was drawn": (
        Variant(step=steps.step_divided_by_what_was_drawn),
        "public_divisor",
    ),
    "empty draw skipped": (Variant(step=steps.step_that_skips_empty_draws), "empty_draw"),
    "empty draw filled": (Variant(step=steps.step_that_fills_empty_draws), "empty_draw"),
    "records clipped, not units": (Variant(step=steps.step_by_record), "sensitivity"),
    "rows filled with other units": (Variant(step=steps.step_that_packs_two_units), "sensitivity"),
    "parts of a unit clipped": (Variant(step=steps.step_that_clips_parts), "sensitivity"),
    "noise started again at each step": (
        Variant(step=steps.step_with_the_last_stream_again),
        "fresh_noise",
    ),
    "mean over the batch's tokens": (
        Variant(loss_of=parts.mean_over_the_batch),
        "records_apart",
    ),
    "divided by the longest record": (
        Variant(loss_of=parts.sum_over_tokens),
        "records_apart",
    ),
    "noise from the stream of the draw": (
        Variant(step=steps.step_with_one_stream),
        "streams_apart",
    ),
    "one key for draw and noise": (Variant(streams=parts.streams_of_one_key), "streams_apart"),
    "clipped without room for rounding": (
        Variant(mechanism=mechanisms.NoMargin),
        "room_for_rounding",
    ),
    "noise of seed 42": (Variant(streams=parts.streams_of_seed), "fresh_noise"),
    "noise of torch's seed": (Variant(streams=parts.streams_of_torch), "fresh_noise"),
    "tied norm overwritten": (Variant(gradients=parts.tied_once), "norms"),
    "uses of a tied weight kept apart": (
        Variant(factors=parts.factors_apart),
        "norms_from_factors",
    ),
    "tied norm overwritten by its last use": (
        Variant(factors=parts.last_use_only),
        "norms_from_factors",
    ),
    "norm of a unit's sequences apart": (
        Variant(factors=parts.sequences_apart),
        "norms_from_factors",
    ),
    "norm over LoRA's A only": (Variant(norms=parts.first_matrix_only), "norms"),
    "norms in bf16": (Variant(norms=parts.norms_in_bf16), "norms"),
    "norms by a loose bound": (Variant(norms=parts.loose_norms), "norms"),
    "noise on every rank, summed": (
        Variant(step=ranks.step_with_noise_on_every_part),
        "noise_over_ranks",
    ),
    "noise on every rank, averaged": (
        Variant(step=ranks.step_with_averaged_noise),
        "noise_over_ranks",
    ),
    "the same noise on every rank": (
        Variant(step=ranks.step_with_the_same_stream_on_every_rank),
        "fresh_noise_over_ranks",
    ),
    "noise on rank 0's rows only": (
        Variant(step=ranks.step_with_noise_on_the_first_rows),
        "noise_over_ranks",
    ),
    "each rank applies its own noise": (
        Variant(step=ranks.step_with_noise_of_its_own),
        "one_gradient",
    ),
    "each rank draws its own batch": (
        Variant(step=ranks.step_with_a_draw_on_every_rank),
        "each_unit_on_one_rank",
    ),
    "each rank takes the whole draw": (
        Variant(step=ranks.step_with_the_draw_on_every_rank),
        "each_unit_on_one_rank",
    ),
    "empty rank filled": (
        Variant(step=ranks.step_that_fills_empty_ranks),
        "each_unit_on_one_rank",
    ),
    "mean over ranks": (Variant(step=ranks.step_with_the_mean_over_ranks), "sum_over_ranks"),
    "clip norm divided among ranks": (
        Variant(step=ranks.step_with_a_share_of_the_norm),
        "sum_over_ranks",
    ),
    "delta times the ranks": (
        Variant(plan=ranks.plan_with_delta_times_ranks),
        "guarantee_over_ranks",
    ),
    "delta of each rank's own units": (
        Variant(plan=ranks.plan_of_the_share),
        "guarantee_over_ranks",
    ),
}
