"""What one version of a library says about one model: run by that version's own Python.

Everything here works with any transformer-lens from 2.0 on and any transformers from 4.46 on;
nothing of residcheck is imported except, for ``transformers``, its plain backend.

``python witness.py`` reads one job a line on standard input (JSON: ``library``, ``folder``,
``out``, ``limit``), forks a process for it, and answers with one line (``status`` ``ok``,
``timeout`` or ``crash``). The library is imported once, before the first fork. A job leaves
``OUT.npz`` and then ``OUT.json``, each by one rename: with the second there it is finished.

Arrays are called ``DTYPE/PROCESSING/NAME``, names being TransformerLens' own. What fails is
noted under ``errors`` with the part that it belongs to, and the other parts go on.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

SCHEMA = "residcheck.witness/1"
PAD, PADDED = 2, 5
ROWS, LENGTH, VOCAB = 2, 24, 512
SITES = (
    "hook_resid_pre",
    "ln1.hook_scale",
    "ln1.hook_normalized",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "ln2.hook_scale",
    "ln2.hook_normalized",
    "mlp.hook_pre",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
)
FINAL = ("ln_final.hook_scale", "ln_final.hook_normalized")
ATTENTION = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O")
MLP = ("W_in", "W_gate", "W_out", "b_in", "b_out")
DTYPES = ("float32", "float64")
PROCESSINGS = ("raw", "processed", "twice")
Arrays = dict[str, Any]


def tokens() -> Any:
    """``[row, position]``: longer than every window of the zoo, the first one BOS."""
    ids = np.random.RandomState(7).randint(3, VOCAB, (ROWS, LENGTH))
    ids[:, 0] = 0
    return torch.tensor(ids)


def padded(side: str) -> tuple[Any, Any]:
    """The batch with the first row cut by ``PADDED`` tokens and padded, and its mask."""
    ids, kept = tokens(), LENGTH - PADDED
    mask, filling = torch.ones_like(ids), torch.full((PADDED,), PAD)
    if side == "left":
        ids[0] = torch.cat([filling, ids[0, :kept]])
        mask[0, :PADDED] = 0
    else:
        ids[0] = torch.cat([ids[0, :kept], filling])
        mask[0, kept:] = 0
    return ids, mask


class Lens:
    """A model in TransformerLens, through hooks and weights as its users get at them."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.layers = len(model.blocks)
        blocks = [f"blocks.{layer}.{site}" for layer in range(self.layers) for site in SITES]
        self.names = [*blocks, *FINAL]

    def cached(self, ids: Any) -> Arrays:
        """The same hooks as ``run_with_cache`` gives them."""
        _, cache = self.model.run_with_cache(ids)
        return {name: cache[name] for name in self.names if name in cache}

    def loss(self, ids: Any) -> Any:
        return self.model(ids, return_type="loss")

    def run(self, ids: Any, mask: Any, hooked: bool) -> tuple[Any, Arrays]:
        seen: Arrays = {}

        def hook_of(name: str) -> Any:
            def note(tensor: Any, hook: Any) -> None:
                seen[name] = tensor.detach().clone()

            return note

        there = [name for name in self.names if name in self.model.hook_dict] if hooked else []
        given = {} if mask is None else {"attention_mask": mask}
        with self.model.hooks(fwd_hooks=[(name, hook_of(name)) for name in there]):
            return self.model(ids, return_type="logits", **given), seen

    def weights(self) -> Arrays:
        found: Arrays = {}
        for layer, block in enumerate(self.model.blocks):
            for part, names in (("attn", ATTENTION), ("mlp", MLP)):
                for name in names:
                    with quiet(found, f"blocks.{layer}.{part}.{name}"):
                        found[f"blocks.{layer}.{part}.{name}"] = getattr(getattr(block, part), name)
        for name in ("W_E", "W_U", "b_U"):
            with quiet(found, name):
                found[name] = getattr(self.model, name)
        for name in (*ATTENTION, *MLP):
            with quiet(found, name):
                for layer, matrix in enumerate(getattr(self.model, name)):
                    found[f"stacked.{layer}.{name}"] = matrix
        return {name: value for name, value in found.items() if torch.is_tensor(value)}


class quiet:  # noqa: N801
    """Leaves out of ``found`` what a library raises on: it is missing then."""

    def __init__(self, found: Arrays, name: str) -> None:
        self.found, self.name = found, name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        return isinstance(error, Exception)


def bridge(folder: str, dtype: str) -> Iterator[tuple[str, Any]]:
    """TransformerBridge: raw as it boots, then processed by its compatibility mode."""
    from transformer_lens.model_bridge import TransformerBridge

    model = TransformerBridge.boot_transformers(folder, device="cpu", dtype=getattr(torch, dtype))
    yield "raw", Lens(model)
    for processing in ("processed", "twice"):
        model.enable_compatibility_mode(disable_warnings=True)
        yield processing, Lens(model)


# Architectures that HookedTransformer knows under fixed names only, with the sizes in its code.
# The code of such a name is run with the sizes of the model at hand.
OFFICIAL = {
    "gemma": "google/gemma-2b",
    "gemma2": "google/gemma-2-2b",
    "gemma3_text": "google/gemma-3-270m",
    "llama3": "meta-llama/Llama-3.1-8B",
}


def hooked(folder: str, dtype: str) -> Iterator[tuple[str, Any]]:
    """HookedTransformer's own loading path, of a folder in the place of a hub name."""
    import transformer_lens
    from transformer_lens import loading_from_pretrained as loading
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=getattr(torch, dtype))
    config = model.config
    kind = "llama3" if rope_of(config).get("rope_type") == "llama3" else config.model_type
    name = OFFICIAL.get(kind)
    convert = loading.convert_hf_model_config
    if name is None:
        loading.get_official_model_name = lambda given: given
    else:
        loading.convert_hf_model_config = lambda given, **more: sized(convert(name, **more), config)
        loading.get_official_model_name = lambda given: name
    kwargs = {"hf_model": model, "device": "cpu", "dtype": getattr(torch, dtype)}
    kwargs["tokenizer"] = AutoTokenizer.from_pretrained(folder)
    cls, where = transformer_lens.HookedTransformer, name or folder
    made = cls.from_pretrained_no_processing(where, **kwargs)
    yield "raw", Lens(made)
    yield "processed", Lens(cls.from_pretrained(where, **kwargs))
    made.process_weights_()
    made.process_weights_()
    yield "twice", Lens(made)


def rope_of(config: Any) -> dict[str, Any]:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return rope.get("full_attention", rope) | (  # type: ignore[no-any-return]
        {"rope_local": rope["sliding_attention"]["rope_theta"]} if "full_attention" in rope else {}
    )


def sized(known: dict[str, Any], config: Any) -> dict[str, Any]:
    """A fixed configuration with the sizes and constants of another model of its kind."""
    rope, layers = rope_of(config), config.num_hidden_layers
    heads = config.num_attention_heads
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * layers
    theta = rope.get("rope_theta", getattr(config, "rope_theta", None))
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    own = {
        "d_model": config.hidden_size,
        "d_head": width,
        "n_heads": heads,
        "d_mlp": config.intermediate_size,
        "n_layers": layers,
        "n_ctx": config.max_position_embeddings,
        "eps": config.rms_norm_eps,
        "d_vocab": config.vocab_size,
        "rotary_dim": width,
        "rotary_base": theta,
        "rotary_base_local": rope.get("rope_local", getattr(config, "rope_local_base_freq", None)),
        "n_key_value_heads": config.num_key_value_heads,
        "window_size": getattr(config, "sliding_window", None),
        "attn_types": ["local" if kind.startswith("sliding") else "global" for kind in kinds],
        "attn_scores_soft_cap": getattr(config, "attn_logit_softcapping", None) or -1.0,
        "output_logits_soft_cap": getattr(config, "final_logit_softcapping", None) or -1.0,
        "NTK_by_parts_low_freq_factor": rope.get("low_freq_factor"),
        "NTK_by_parts_high_freq_factor": rope.get("high_freq_factor"),
        "NTK_by_parts_factor": rope.get("factor"),
        "NTK_original_ctx_len": rope.get("original_max_position_embeddings"),
    }
    # What the kind needs of these is what its fixed configuration sets.
    always = ("n_key_value_heads", "output_logits_soft_cap")
    return known | {k: v for k, v in own.items() if k in known or (k in always and v)}


class Plain:
    """A model in transformers, through residcheck's plain backend."""

    def __init__(self, model: Any, folder: str) -> None:
        from residcheck.backends.plain import PlainBackend
        from residcheck.models import LoadedModel, ModelSpec

        spec = ModelSpec(folder).with_options(backend="transformers")
        self.model = model.eval()
        self.backend = PlainBackend(LoadedModel(folder, "", model, None, spec))
        self.layers = self.backend.anatomy.n_layers

    def run(self, ids: Any, mask: Any, hooked: bool) -> tuple[Any, Arrays]:
        seen: Arrays = {}
        anatomy = self.backend.anatomy

        def tap_of(name: str) -> Any:
            def note(tensor: Any) -> None:
                seen[name] = tensor.detach().clone()

            return note

        taps = {
            (layer, site): tap_of(f"blocks.{layer}.{name}")
            for layer in range(self.layers)
            for site, name in PLAIN_SITES.items()
            if hooked and anatomy.has(site)  # type: ignore[arg-type]
        }
        with positions(self.model, mask):
            ones = torch.ones_like(ids) if mask is None else mask
            return self.backend.forward(ids, ones, taps, logits=True), seen  # type: ignore[arg-type]

    def weights(self) -> Arrays:
        found: Arrays = {}
        for layer in range(self.layers):
            both = self.backend.weights(layer)
            for part, given in (("attn", both.attention), ("mlp", both.mlp)):
                for name, value in ({} if given is None else vars(given)).items():
                    if torch.is_tensor(value):
                        found[f"blocks.{layer}.{part}.{name}"] = value
            for number, site in ((1, "ln1_out"), (2, "ln2_out")):
                if self.backend.anatomy.has(site):  # type: ignore[arg-type]
                    affine = self.backend.affine(layer, site)  # type: ignore[arg-type]
                    found[f"blocks.{layer}.ln{number}.w"] = affine.gain
                    found[f"blocks.{layer}.ln{number}.b"] = affine.bias
        found["W_E"] = self.backend.embedding()
        found["W_U"], bias = self.backend.unembedding()
        final = self.backend.final_norm()
        if bias is not None:
            found["b_U"] = bias
        if final is not None:
            found |= {"ln_final.w": final.gain, "ln_final.b": final.bias}
        return found

    def anatomy(self) -> dict[str, Any]:
        kept = "model_type norm norm_eps parallel gated n_layers d_model n_heads n_kv_heads d_head"
        anatomy = self.backend.anatomy
        missing = {"missing": sorted(anatomy.missing), "dark": sorted(anatomy.missing_weights)}
        return {name: getattr(anatomy, name) for name in kept.split()} | missing

    def gate(self) -> str:
        """What residcheck's identity gate says; empty if it lets the model through."""
        from residcheck.errors import ResidcheckError
        from residcheck.measure import gate
        from residcheck.tolerances import tolerance

        ids = tokens()
        with torch.inference_mode():
            reference = self.model(input_ids=ids, use_cache=False).logits
        row = tolerance(str(self.model.dtype).removeprefix("torch."))
        if row is tolerance("float64"):
            row = tolerance("float32")  # norms and eager attention compute in float32 at most
        try:
            gate.check(self.backend, ids, reference, row)
        except ResidcheckError as error:
            return str(error).splitlines()[0]
        return ""


PLAIN_SITES = {
    "resid_pre": "hook_resid_pre",
    "ln1_out": "ln1.hook_out",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "ln2_out": "ln2.hook_out",
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}


class positions:  # noqa: N801
    """Within: a padded batch's position ids are handed to the model, as ``generate`` does."""

    def __init__(self, model: Any, mask: Any) -> None:
        self.model, self.mask, self.handle = model, mask, None

    def __enter__(self) -> None:
        import inspect

        takes = "position_ids" in inspect.signature(self.model.forward).parameters
        if self.mask is None or not takes:
            return
        ids = (self.mask.cumsum(-1) - 1).clamp_min(0)

        def add(module: Any, args: Any, kwargs: Any) -> Any:
            return args, kwargs | {"position_ids": ids}

        self.handle = self.model.register_forward_pre_hook(add, with_kwargs=True)

    def __exit__(self, *error: Any) -> None:
        if self.handle is not None:
            self.handle.remove()  # type: ignore[unreachable]


def plain(folder: str, dtype: str) -> Iterator[tuple[str, Any]]:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    more = {"attn_implementation": "eager", "torch_dtype": getattr(torch, dtype)}
    major = int(importlib.import_module("transformers").__version__.split(".")[0])
    if major >= 5 and any("expert" in key for key in config.to_dict()):
        more["experts_implementation"] = "eager"  # the grouped kernel knows no float64
    yield "raw", Plain(AutoModelForCausalLM.from_pretrained(folder, **more), folder)


LIBRARIES = {"bridge": bridge, "hooked": hooked, "transformers": plain}
# Imported before the first fork. The modeling files pull in what transformers imports late.
MODELING = ("transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama")
MODULES = {
    "bridge": ("transformer_lens", "transformer_lens.model_bridge", *MODELING),
    "hooked": ("transformer_lens", *MODELING),
    "transformers": ("residcheck.backends.plain", "residcheck.measure.gate", *MODELING),
}


class Record:
    """What was seen, in the order in which it was; an array seen before is not held twice."""

    def __init__(self) -> None:
        self.arrays: dict[str, Any] = {}
        self.aliases: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.missing: dict[str, list[str]] = {}
        self._known: dict[str, str] = {}

    def put(self, name: str, tensor: Any) -> None:
        array = np.array(tensor.detach().cpu().numpy(), order="C")  # libraries write in place
        key = f"{array.dtype}{array.shape}" + hashlib.sha256(array.tobytes()).hexdigest()
        if key in self._known:
            self.aliases[name] = self._known[key]
        else:
            self._known[key] = name
            self.arrays[name] = array

    def attempt(self, part: str, work: Any) -> Any:
        try:
            with torch.no_grad():
                return work()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            text = f"{type(error).__name__}: {error}".strip()
            self.errors[part] = f"{text[:600]} ({Path(where.filename).name}:{where.lineno})"
            return None


def see(record: Record, library: str, folder: str) -> dict[str, Any]:
    """All parts, in all dtypes and processings; returns what is known beside the arrays."""
    facts: dict[str, Any] = {}
    expected = PROCESSINGS[:1] if library == "transformers" else PROCESSINGS
    for dtype in DTYPES:
        states = LIBRARIES[library](folder, dtype)
        for processing in expected:
            part = f"{dtype}/{processing}"
            state = record.attempt(part, lambda s=states: next(s))
            if state is None:  # what comes after builds on it
                break
            model = state[1]
            _see_model(record, model, part)
            if library == "transformers":
                facts.setdefault("anatomy", model.anatomy())
                gate = record.attempt(f"{part}/gate", model.gate)
                facts.setdefault("gate", {})[part] = "the gate raised" if gate is None else gate
    return facts


def _see_model(record: Record, model: Any, part: str) -> None:
    ids = tokens()
    twice = part.endswith("twice")

    def whole() -> None:
        logits, seen = model.run(ids, None, hooked=not twice)
        record.put(f"{part}/logits", logits)
        for name, tensor in seen.items():
            record.put(f"{part}/{name}", tensor)

    def with_padding(side: str) -> None:
        batch, mask = padded(side)
        logits, _ = model.run(batch, mask, hooked=False)
        record.put(f"{part}/{side}.logits", logits[mask.bool()])

    def alone() -> None:
        rows = [model.run(row[None], None, hooked=False)[0][0] for row in ids]
        record.put(f"{part}/alone.logits", torch.cat(rows))

    def weights() -> None:
        for name, tensor in model.weights().items():
            record.put(f"{part}/{name}", tensor)

    def cached() -> None:
        for name, tensor in model.cached(ids).items():
            record.put(f"{part}/cache.{name}", tensor)

    record.attempt(f"{part}/logits", whole)
    record.attempt(f"{part}/weights", weights)
    if isinstance(model, Lens) and not twice:
        record.attempt(f"{part}/cache", cached)
        record.attempt(f"{part}/loss", lambda: record.put(f"{part}/loss", model.loss(ids)))
    if not twice:
        for side in ("left", "right"):
            record.attempt(f"{part}/{side}.logits", lambda s=side: with_padding(s))
        record.attempt(f"{part}/alone.logits", alone)


def write(record: Record, facts: dict[str, Any], out: Path) -> None:
    arrays, document = out.with_suffix(".npz"), out.with_suffix(".json")
    partial = out.with_suffix(".partial.npz")
    np.savez(partial, **record.arrays)
    partial.replace(arrays)
    facts |= {"aliases": record.aliases, "errors": record.errors}
    partial = out.with_suffix(".partial.json")
    partial.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(document)


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": sys.version.split()[0]}
    for name in ("torch", "transformers", "transformer-lens", "numpy", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def child(job: dict[str, Any]) -> None:
    started, record = time.monotonic(), Record()
    facts = see(record, job["library"], job["folder"])
    facts |= {"status": "ok", "schema": SCHEMA, "library": job["library"], "versions": versions()}
    facts["seconds"] = round(time.monotonic() - started, 2)
    write(record, facts, Path(job["out"]))


def fork(job: dict[str, Any]) -> str:
    """Run a job in a process of its own; killed at its limit."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            child(job)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    end = time.monotonic() + float(job["limit"])
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return "ok" if code == 0 else f"crash: exit status {code}"
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return f"timeout: killed after {job['limit']} s"


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    imported: dict[str, str] = {}
    for line in sys.stdin:
        job = json.loads(line)
        library = job["library"]
        if library not in imported:
            imported[library] = _import(library)
        status = imported[library] or fork(job)
        answers.write(json.dumps({"status": status, "versions": versions()}) + "\n")
        answers.flush()


def _import(library: str) -> str:
    """Why a library cannot be imported; empty if it can."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        for module in MODULES[library]:
            importlib.import_module(module)
        if library == "hooked":
            importlib.import_module("transformer_lens").HookedTransformer  # noqa: B018
    except Exception as error:
        text = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        return f"cannot import: {text[:300]}"
    return ""


if __name__ == "__main__":
    serve()
