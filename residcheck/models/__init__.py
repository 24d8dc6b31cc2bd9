"""Where models come from: spec strings, built-in models, the cache, loading.

torch and transformers are imported only when a model is loaded.
"""

from residcheck.models.builtin import BUILTIN as BUILTIN
from residcheck.models.builtin import DEFAULT_MODEL as DEFAULT_MODEL
from residcheck.models.builtin import BuiltinModel as BuiltinModel
from residcheck.models.devices import check_device as check_device
from residcheck.models.devices import on_gpu as on_gpu
from residcheck.models.load import LoadedModel as LoadedModel
from residcheck.models.load import check_name as check_name
from residcheck.models.load import load as load
from residcheck.models.spec import ModelSpec as ModelSpec
from residcheck.models.spec import parse_spec as parse_spec
