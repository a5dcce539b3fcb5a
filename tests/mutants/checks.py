"""What must be true of a DP-SGD step, as functions that raise AssertionError where it is not.

Each takes a Variant, the real one or a mutant. They look at what comes out only: the units that
were read and the gradients that were released. Random checks have fixed keys, and thresholds far
from what chance does.
"""

from __future__ import annotations

from collections.abc import Callable

from mutants import noise_checks as noise
from mutants import rank_checks as ranks
from mutants import sampling_checks as sampling
from mutants import sum_checks as sums
from mutants.variants import Variant

CHECKS: dict[str, Callable[[Variant], None]] = {
    check.__name__: check
    for check in (
        sums.sensitivity,
        sums.sum_of_clipped_units,
        sums.forms_do_not_show,
        sums.room_for_rounding,
        sums.outstanding_units,
        sums.public_divisor,
        sums.records_apart,
        sums.not_finite,
        sums.norms,
        sums.norms_from_factors,
        noise.noise_scale,
        noise.noise_is_independent,
        noise.fresh_noise,
        noise.streams_apart,
        noise.one_release,
        noise.empty_draw,
        sampling.poisson_inclusion,
        sampling.poisson_sizes,
        sampling.poisson_pairs,
        sampling.declared_units,
        sampling.each_unit_once,
        ranks.noise_over_ranks,
        ranks.fresh_noise_over_ranks,
        ranks.one_gradient,
        ranks.each_unit_on_one_rank,
        ranks.sum_over_ranks,
        ranks.guarantee_over_ranks,
    )
}
