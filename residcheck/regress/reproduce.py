"""A finding as a script that needs the library only, and prints what should agree."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from textwrap import indent
from typing import Any

from residcheck import zoo
from residcheck.backends.anatomy import Blocks, dissect
from residcheck.regress.environments import Environment
from residcheck.regress.expected import STREAM
from residcheck.regress.findings import LOAD, Finding
from residcheck.regress.judge import CACHE, LOGITS, LOSS, SIDES, STACKED, TWICE
from residcheck.regress.stand.witness.asked import PADDED, PLAIN_SITES
from residcheck.regress.stand.witness.hooked import OFFICIAL, rope_of, sized
from residcheck.zoo import PAD, VOCAB

_TIME = 180.0
_SITE = {name: site for site, name in PLAIN_SITES.items()}

_MODEL = """\
import tempfile

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, {kind}
from tokenizers import Tokenizer, models

torch.manual_seed(0)
config = {kind}({arguments})
model = AutoModelForCausalLM.from_config(config)
for parameter in model.parameters():  # gains far from 1, biases far from 0
    parameter.data += (0.3 if parameter.ndim == 1 else 0.08) * torch.randn_like(parameter)
folder = tempfile.mkdtemp()
model.save_pretrained(folder)
words = Tokenizer(models.WordLevel({{f"w{{i}}": i for i in range({vocab})}}, unk_token="w3"))
names = dict(bos_token="w0", eos_token="w1", pad_token="w{pad}")
PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
ids = torch.randint(3, {vocab}, (2, 24))
torch.set_grad_enabled(False)
load = dict({dtype}=torch.{precision}, attn_implementation="eager")
plain = AutoModelForCausalLM.from_pretrained(folder, **load).eval()
"""
_OPEN = {
    "bridge": """\
from transformer_lens.model_bridge import TransformerBridge

lens = TransformerBridge.boot_transformers(folder, device="cpu", dtype=torch.{precision})
""",
    "hooked": """\
from transformer_lens import HookedTransformer, loading_from_pretrained as loading

load = dict(hf_model=plain, device="cpu", dtype=torch.{precision})
load["tokenizer"] = PreTrainedTokenizerFast.from_pretrained(folder)
{name}lens = HookedTransformer.from_pretrained{how}(folder, **load)
""",
    "transformers": "lens = plain\n",
}
_FOLDER = "loading.get_official_model_name = lambda name: name  # a folder in the place of a name\n"
_OFFICIAL = """\
# What HookedTransformer does of this name, with the sizes of the model above.
SIZES = {sizes}
known = loading.convert_hf_model_config


def convert(name, **more):
    found = known({name!r}, **more)
    found |= {{k: v for k, v in SIZES.items() if k in found or k in {always!r}}}
    if "attn_types" in found:
        found["attn_types"] = found["attn_types"][: found["n_layers"]]
    return found


loading.convert_hf_model_config = convert
loading.get_official_model_name = lambda name: {name!r}
folder = {name!r}
"""


def script(finding: Finding, transformers: str) -> str:
    """Source of a reproduction, for the last version that has the fault.

    Args:
        transformers: the version of transformers that it runs beside.
    """
    processing = finding.processings[0]
    precision = "float64" if _only_double(finding) else "float32"
    old = transformers.startswith("4.")
    kind, given = zoo.arguments_of(finding.model, old=old)
    made = _MODEL.format(
        kind=kind,
        arguments=_called(given),
        vocab=VOCAB,
        pad=PAD,
        precision=precision,
        dtype="torch_dtype" if old else "dtype",
    )
    package = "transformers" if finding.library == "transformers" else "transformer-lens"
    head = f"# {package} {finding.span.last}, transformers {transformers}: {finding.quantity}\n"
    how = "" if processing == "processed" else "_no_processing"
    name = _named(finding.model) if finding.library == "hooked" else ""
    opened = _OPEN[finding.library].format(precision=precision, how=how, name=name)
    if finding.library == "bridge" and processing == "processed":
        opened += "lens.enable_compatibility_mode(disable_warnings=True)\n"
    return head + made + opened + _measured(finding)


_ALWAYS = ("n_key_value_heads", "output_logits_soft_cap")
"""Set whether or not the configuration of the name has them."""


class _Everything(dict[str, Any]):
    """A configuration that has every field: what a model would set of each."""

    def __contains__(self, key: object) -> bool:
        return True


def _named(model: str) -> str:
    """How HookedTransformer is told of a model: by its folder, or under the name it knows."""
    import transformers

    kind, given = zoo.arguments_of(model)
    config = getattr(transformers, kind)(**given)
    long = rope_of(config).get("rope_type") == "llama3"
    name = OFFICIAL.get("llama3" if long else config.model_type)
    if name is None:
        return _FOLDER
    sizes = sized(_Everything(attn_types=[]), config)
    sizes = {k: v for k, v in sizes.items() if v not in (None, [])}
    if sizes.get("output_logits_soft_cap", 0) <= 0:
        sizes.pop("output_logits_soft_cap", None)
    return _OFFICIAL.format(sizes=_listed(sizes), name=name, always=_ALWAYS)


def _listed(values: dict[str, Any]) -> str:
    inside = "".join(f"    {name!r}: {value!r},\n" for name, value in values.items())
    return "{\n" + inside + "}"


def _only_double(finding: Finding) -> bool:
    worst = finding.worst
    return worst.double == worst.double and worst.size < 1e-2 * worst.double


def _called(arguments: dict[str, Any]) -> str:
    inside = ",\n".join(f"{name}={value!r}" for name, value in arguments.items())
    return "\n" + indent(inside, "    ") + ",\n"


def _measured(finding: Finding) -> str:
    """What is compared: by the kind of quantity."""
    quantity, layer = finding.quantity, max(finding.worst.layer, 0)
    if quantity == LOAD:
        return "print('loads')\n" + _FORWARD
    if finding.kind == "missing" or quantity in _WEIGHTS:
        return _weight_or_hook(finding, layer)
    sides = {name: side for side, name in SIDES.items()}
    if quantity in sides:
        return _PADDED[sides[quantity]].format(padded=PADDED, pad=PAD)
    if quantity == TWICE:
        return _TWICE[finding.library]
    if quantity in (CACHE, STACKED):
        return _OTHER_WAY.format(note=finding.worst.note)
    if quantity in (LOGITS, LOSS):
        return _LOGITS
    return _site(finding.model, quantity, layer)


_WEIGHTS = frozenset(
    [
        "W_Q",
        "W_K",
        "W_V",
        "W_O",
        "b_Q",
        "b_K",
        "b_V",
        "b_O",
        "W_in",
        "W_gate",
        "W_out",
        "b_in",
        "b_out",
    ]
)
_FORWARD = """\
said = lens(ids) if lens is not plain else lens(ids).logits
print("largest difference of the log-probabilities:",
      (said.log_softmax(-1) - plain(ids).logits.log_softmax(-1)).abs().max().item())
"""
_LOGITS = """\
said = lens(ids) if lens is not plain else lens(ids).logits
for name, logits in (("transformers", plain(ids).logits), ("library", said)):
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    print(f"{name:12} loss {loss.item():.6f}, a log-probability "
          f"{logits.log_softmax(-1)[0, -1, 7].item():.6f}")
"""
_RUN = """\
def run(ids, mask=None):
    more = {} if mask is None else {"attention_mask": mask}
    if lens is plain and mask is not None:
        more["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
    said = lens(ids, **more)
    return (said.logits if lens is plain else said).log_softmax(-1)


whole = run(ids)[0, :24 - PADDED]
"""
_PADDED = {
    "left": "PADDED = {padded}\n" + _RUN.replace("{", "{{").replace("}", "}}") + """\
batch, mask = ids.clone(), torch.ones_like(ids)
batch[0] = torch.cat([torch.full((PADDED,), {pad}), ids[0, :24 - PADDED]])
mask[0, :PADDED] = 0
print("without padding  ", whole[-1, :4].tolist())
print("with left padding", run(batch, mask)[0, -1, :4].tolist())
""",
    "right": "PADDED = {padded}\n" + _RUN.replace("{", "{{").replace("}", "}}") + """\
batch, mask = ids.clone(), torch.ones_like(ids)
batch[0, 24 - PADDED:], mask[0, 24 - PADDED:] = {pad}, 0
print("without padding   ", whole[-1, :4].tolist())
print("with right padding", run(batch, mask)[0, 23 - PADDED, :4].tolist())
""",
    "alone": "PADDED = 0\n" + _RUN.replace("{", "{{").replace("}", "}}") + """\
print("in a batch of two", whole[-1, :4].tolist())
print("alone            ", run(ids[:1])[0, -1, :4].tolist())
""",
}  # fmt: skip
_TWICE = {
    "bridge": """\
once = lens(ids).log_softmax(-1)
lens.enable_compatibility_mode(disable_warnings=True)
print("processed once ", once[0, -1, :4].tolist())
print("processed twice", lens(ids).log_softmax(-1)[0, -1, :4].tolist())
""",
    "hooked": """\
print("from_pretrained", lens(ids).log_softmax(-1)[0, -1, :4].tolist())
lens = HookedTransformer.from_pretrained_no_processing(folder, **load)
for times in ("once", "twice"):
    lens.process_weights_()
    print(f"process_weights_, {times}", lens(ids).log_softmax(-1)[0, -1, :4].tolist())
""",
}
_OTHER_WAY = """\
name, seen = {note!r}, {{}}
_, cache = lens.run_with_cache(ids)
with lens.hooks(fwd_hooks=[(name, lambda x, hook: seen.update(x=x.clone()))]):
    lens(ids)
print("norm by a hook       ", seen["x"].norm().item())
print("norm by run_with_cache", cache[name].norm().item())
"""


def _weight_or_hook(finding: Finding, layer: int) -> str:
    quantity = finding.quantity
    if quantity not in _WEIGHTS:
        name = f"blocks.{layer}.{quantity}" if not quantity.startswith("ln_final") else quantity
        return f"print({name!r}, {name!r} in lens.hook_dict, '(should be True)')\n"
    part = "attn" if quantity[2:] in "QKVO" else "mlp"
    lines = [
        f"found = getattr(lens.blocks[{layer}].{part}, {quantity!r}, None)",
        f"print({quantity!r}, None if found is None else (list(found.shape), found.norm().item()))",
        f"print('of the plain model:', {_parameters(finding.model, layer, part)})",
    ]
    return "\n".join(lines) + "\n"


def _parameters(model: str, layer: int, part: str) -> str:
    blocks = _blocks(model)
    name = blocks.names["attention" if part == "attn" else "mlp"]
    path = f"{blocks.path}.{layer}.{name}"
    return (
        f"{{n: (list(p.shape), p.norm().item()) for n, p in "
        f"plain.get_submodule({path!r}).named_parameters()}}"
    )


def _blocks(model: str) -> Blocks:
    family, overrides = zoo.MODELS[model]
    return dissect(zoo.new_model(family, **overrides))


def _site(model: str, quantity: str, layer: int) -> str:
    """A hook of the library against one on the plain module."""
    blocks, centre = _blocks(model), quantity in STREAM
    norm, _, what = quantity.partition(".")
    if norm in ("ln1", "ln2") and what in ("hook_scale", "hook_normalized"):
        path, side, scale = (
            blocks.parts["ln1_out" if norm == "ln1" else "ln2_out"].path,
            "input",
            1.0,
        )
    elif quantity in _SITE:
        part = blocks.parts[_SITE[quantity]]  # type: ignore[index]
        path, side, scale = part.path, part.side, part.scale
    else:
        return _LOGITS
    where = ".".join(filter(None, (f"{blocks.path}.{layer}", path)))
    if side == "output":
        grab = "out[0] if isinstance(out, tuple) else out"
        hook = f"lambda m, args, out: seen.update(x=({grab}) * SCALE)"
        attach = f"plain.get_submodule({where!r}).register_forward_hook(\n    {hook}\n)"
    else:
        grab = "args[0] if args else kwargs['hidden_states']"
        hook = f"lambda m, args, kwargs: seen.update(x=({grab}) * SCALE)"
        attach = (
            f"plain.get_submodule({where!r}).register_forward_pre_hook(\n    {hook},\n"
            "    with_kwargs=True,\n)"
        )
    lines = [
        "seen, SCALE = {}, " + repr(scale),
        attach,
        "plain(ids)",
        "right = seen['x'].reshape(2, 24, -1)",
        f"name = 'blocks.{layer}.{quantity}'",
        "with lens.hooks(fwd_hooks=[(name, lambda x, hook: seen.update(y=x.clone()))]):",
        "    lens(ids)",
        "said = seen['y'].reshape(2, 24, -1)",
    ]
    centring = blocks.anatomy.centring
    if norm in ("ln1", "ln2"):
        mean = "right - right.mean(-1, keepdim=True)" if centring else "right"
        lines += [
            f"right = {mean}",
            f"scale = (right.square().mean(-1, keepdim=True) + {blocks.anatomy.norm_eps}).sqrt()",
            "right = scale" if what == "hook_scale" else "right = right / scale",
        ]
    if centre and centring:
        lines.append("right, said = (x - x.mean(-1, keepdim=True) for x in (right, said))")
    lines += [
        "print('transformers', right[0, -1, :4].tolist())",
        "print(f'{name}', said[0, -1, :4].tolist())",
        "print('relative difference', ((said - right).norm() / right.norm()).item())",
    ]
    return "\n".join(lines) + "\n"


def show(source: str, environment: Environment) -> str:
    """What a script prints, run in a version's environment; its error, where it raises."""
    with tempfile.TemporaryDirectory(prefix="residcheck-") as folder:
        path = Path(folder) / "reproduce.py"
        path.write_text(source, encoding="utf-8")
        try:
            done = subprocess.run(
                [environment.python, str(path)],
                capture_output=True,
                text=True,
                env=environment.variables,
                cwd=folder,
                timeout=_TIME,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {_TIME:.0f} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    made = re.escape(tempfile.gettempdir()) + r"/tmp\w+"
    return re.sub(made, "FOLDER", done.stdout.strip())
