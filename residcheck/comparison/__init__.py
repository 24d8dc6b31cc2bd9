"""Two runs against each other: what changed from one library, version or dtype to another.

:func:`compare` is the whole: every quantity within its tolerance, facts exactly, and
what differs settled in float64. :mod:`residcheck.comparison.bisect` asks it of versions.
"""

from residcheck.comparison.quantities import Compared as Compared
from residcheck.comparison.quantities import Row as Row
from residcheck.comparison.quantities import Sameness as Sameness
from residcheck.comparison.quantities import document as document
from residcheck.comparison.quantities import rows_of as rows_of
from residcheck.comparison.refusal import refuse as refuse
from residcheck.comparison.settling import compare as compare
from residcheck.comparison.sides import How as How
from residcheck.comparison.sides import Side as Side
from residcheck.comparison.sides import from_file as from_file
from residcheck.comparison.sides import live as live
