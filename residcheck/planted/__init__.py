"""Models whose answers are known: real modules, with weights that settle every claim.

A spec ``planted:growth=1.045,layers=48,window=5-41,family=gpt2`` can stand wherever a model
can. The construction: :mod:`residcheck.planted.stream` says what each sublayer writes,
:mod:`residcheck.planted.matrices` which matrices write that, and
:mod:`residcheck.planted.families` where they are in an architecture;
:mod:`residcheck.planted.horizons` are Llamas whose layers read what a table says.
"""

from residcheck.planted.plan import Plan as Plan
from residcheck.planted.plan import is_planted as is_planted
from residcheck.planted.plan import options as options
from residcheck.planted.plan import read_plan as read_plan
