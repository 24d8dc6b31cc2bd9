"""Fits, phases, intervals and decisions: pure numpy and scipy, no torch, no files."""

from residcheck.stats.changepoint import change_point as change_point
from residcheck.stats.decision import LEVEL as LEVEL
from residcheck.stats.decision import Decision as Decision
from residcheck.stats.decision import Estimate as Estimate
from residcheck.stats.decision import Outcome as Outcome
from residcheck.stats.decision import Region as Region
from residcheck.stats.decision import decide as decide
from residcheck.stats.decision import exactly as exactly
from residcheck.stats.decision import outcome_of as outcome_of
from residcheck.stats.fits import evidence_for_exponential as evidence_for_exponential
from residcheck.stats.fits import rates as rates
from residcheck.stats.fits import slopes as slopes
from residcheck.stats.intervals import MIN_PROMPTS as MIN_PROMPTS
from residcheck.stats.intervals import over_prompts as over_prompts
from residcheck.stats.phase import MIN_LAYERS as MIN_LAYERS
from residcheck.stats.phase import Phase as Phase
from residcheck.stats.phase import choose_phase as choose_phase
from residcheck.stats.rules import at_most as at_most
from residcheck.stats.rules import bos_anomaly as bos_anomaly
from residcheck.stats.rules import correlated_addition as correlated_addition
from residcheck.stats.rules import distribution_moves_up as distribution_moves_up
from residcheck.stats.rules import exponential_phase as exponential_phase
from residcheck.stats.rules import growth_rate as growth_rate
from residcheck.stats.rules import normalised_input as normalised_input
from residcheck.stats.rules import published_rate as published_rate
from residcheck.stats.rules import ratio_constant as ratio_constant
from residcheck.stats.rules import same_rate as same_rate
from residcheck.stats.rules import triangle_bound as triangle_bound
from residcheck.stats.shape import Shape as Shape
from residcheck.stats.shape import expected_shape as expected_shape
from residcheck.stats.structure_rules import bottleneck as bottleneck
from residcheck.stats.structure_rules import connected_beyond_chance as connected_beyond_chance
from residcheck.stats.structure_rules import heavy_tailed as heavy_tailed
from residcheck.stats.structure_rules import overshadowed as overshadowed
from residcheck.stats.structure_rules import (
    overshadowed_not_cancelled as overshadowed_not_cancelled,
)
from residcheck.stats.structure_rules import removers as removers
from residcheck.stats.structure_rules import writes_persist as writes_persist
from residcheck.stats.toy import toy_example as toy_example
from residcheck.stats.weight_rules import frobenius_theorem as frobenius_theorem
from residcheck.stats.weight_rules import larger_than_real as larger_than_real
from residcheck.stats.weight_rules import negligible_beside as negligible_beside
from residcheck.stats.weight_rules import precision_of as precision_of
from residcheck.stats.weight_rules import random_activation as random_activation
from residcheck.stats.weight_rules import random_mlp as random_mlp
from residcheck.stats.weight_rules import reading_and_writing as reading_and_writing
from residcheck.stats.weight_rules import resampled_like_real as resampled_like_real
from residcheck.stats.weight_rules import slower_than_stream as slower_than_stream
from residcheck.stats.weight_rules import weights_track as weights_track
