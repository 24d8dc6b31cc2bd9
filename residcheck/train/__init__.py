"""Trained controls: small matched GPT-2s that differ in one thing each.

What a claim cannot be asked of a finished model is asked here in training: would a rescaled
residual stream still grow, do more heads raise the growth, where does weight decay move it.
``arms/`` has a file for each arm, ``scales.toml`` the sizes; runs of one seed start from the same
weights and see the same batches in the same order, whatever their arm.
"""

from residcheck.train.arms import Arm as Arm
from residcheck.train.arms import Changes as Changes
from residcheck.train.arms import read_arms as read_arms
from residcheck.train.scales import Scale as Scale
from residcheck.train.scales import read_scales as read_scales
