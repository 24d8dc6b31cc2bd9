"""Named faults, modelled on those that model libraries have shipped, to be planted on purpose.

Whose fault it is decides what can notice it:

* ``model``: the model library computes something else, or the weights are damaged. The plain
  model that is the reference computes it, too, so the gates cannot see it; snapshots can.
* ``library``: the library that taps the model runs something else than the plain model, or
  hands out other matrices than it computes with. The gates compare with the plain model.
* ``taps``: the model is right and a hook hands out another tensor. The identities see it.

A session with a fault in it opens like any other, or is refused by a gate::

    fault = FAULTS["value-bias-lost"]
    session = open_faulty(ModelSpec("tiny-qwen2"), fault, shipped())
    run = run_session(session)  # compare its curves with those of the sound run

A fault changes the model in place (``apply``) or gives a backend to go on with (``wrap``).
``applies`` says for which models it exists. :data:`EQUIVALENT` holds changes that change
nothing that is measured: nothing may notice these, but for the order along their ``axes``.
To add a fault, add an entry to one of the tuples below.
"""

from __future__ import annotations

from residcheck.faults.base import Fault as Fault
from residcheck.faults.base import Subject as Subject
from residcheck.faults.equivalent import EQUIVALENT_CHANGES
from residcheck.faults.libraries import LIBRARIES
from residcheck.faults.modules import MODULES
from residcheck.faults.planting import open_faulty as open_faulty
from residcheck.faults.planting import plant as plant
from residcheck.faults.positions import POSITIONS
from residcheck.faults.taps import TAPS
from residcheck.faults.weights import WEIGHTS

_ALL = (*WEIGHTS, *MODULES, *POSITIONS, *LIBRARIES, *TAPS)
FAULTS: dict[str, Fault] = {fault.name: fault for fault in _ALL}
EQUIVALENT: dict[str, Fault] = {fault.name: fault for fault in EQUIVALENT_CHANGES}
