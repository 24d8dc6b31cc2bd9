"""The layer horizon: what is lost when a layer reads only what the last k layers wrote.

:class:`Variant` defines it; :class:`Truncation` measures it, for all horizons at once, at
the cost of about half as many forward passes as the model has layers.
"""

from residcheck.horizon.check import check_blocks as check_blocks
from residcheck.horizon.original import Tokens as Tokens
from residcheck.horizon.plan import DEFAULT_MEMORY as DEFAULT_MEMORY
from residcheck.horizon.plan import SMALLEST as SMALLEST
from residcheck.horizon.plan import USEFUL_TOKENS as USEFUL_TOKENS
from residcheck.horizon.plan import Plan as Plan
from residcheck.horizon.plan import block_bytes as block_bytes
from residcheck.horizon.scores import Scores as Scores
from residcheck.horizon.truncation import Truncation as Truncation
from residcheck.horizon.truncation import upper_half as upper_half
from residcheck.horizon.variant import DEFINITION as DEFINITION
from residcheck.horizon.variant import Schedule as Schedule
from residcheck.horizon.variant import Variant as Variant
from residcheck.horizon.variant import schedule as schedule
