"""The zoo: a tiny random model of every decoder family that model libraries support.

Nothing of it is stored: the numbers follow from the configuration and two seeds. Adding a
model means adding a line to a table in ``table.py``.
"""

from residcheck.zoo.building import BOS as BOS
from residcheck.zoo.building import EOS as EOS
from residcheck.zoo.building import IDS as IDS
from residcheck.zoo.building import PAD as PAD
from residcheck.zoo.building import VOCAB as VOCAB
from residcheck.zoo.building import config_of as config_of
from residcheck.zoo.building import new_model as new_model
from residcheck.zoo.building import randomised as randomised
from residcheck.zoo.building import tokenizer as tokenizer
from residcheck.zoo.saving import arguments_of as arguments_of
from residcheck.zoo.saving import save as save
from residcheck.zoo.table import FAMILIES as FAMILIES
from residcheck.zoo.table import MODELS as MODELS
from residcheck.zoo.table import SETTINGS as SETTINGS
