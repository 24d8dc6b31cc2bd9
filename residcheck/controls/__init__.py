"""Trained controls read and compared: do the arms grow otherwise than the baseline, and where?

A zoo is a folder of runs as :mod:`residcheck.train` leaves them; of each, ``provenance.json``,
``history.jsonl`` and ``measured.json`` are read and no model. ``runs/<scale>/`` is the zoo that
comes with residcheck.
"""

from residcheck.controls.comparison import Comparison as Comparison
from residcheck.controls.reading import Control as Control
from residcheck.controls.reading import Zoo as Zoo
from residcheck.controls.reading import read_zoo as read_zoo
from residcheck.controls.reading import shipped as shipped
