"""What measuring a model of GPT2-XL's exact shape costs, against one plain forward pass.

``python tests/gpu/xl.py --device cuda`` builds it with random weights on the device and times, in
one process: the plain forward pass with logits, the instrumented pass with every measurement, the
statistics of the weights, and all layer horizons. It prints a table and writes ``xl.json`` and
``xl.md`` into ``--out``. ``--device cpu`` takes a smaller shape.

With torch, transformers and transformer_lens installed, it runs from a checkout as it is:
``PYTHONPATH=. python tests/gpu/xl.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from residcheck.corpus import Prompts, shipped
from residcheck.measure import Session, environment, run_session
from residcheck.measure.opening import open_loaded
from residcheck.measure.recording import Recording
from residcheck.measure.tokens import batch_of, longest_first
from residcheck.models import LoadedModel, ModelSpec, check_device
from residcheck.models.devices import set_products
from residcheck.names import HORIZON, QUANTITIES, RANDOM_INPUTS, STRUCTURE, WEIGHTS
from residcheck.planted.tokens import BOS, VOCABULARY, tokenizer
from residcheck.weights.statistics import folded_statistics

IN_PASS = (*QUANTITIES, *STRUCTURE)
OF_WEIGHTS = [name for name in (*WEIGHTS, *RANDOM_INPUTS) if not name.endswith("_raw")]
OF_HORIZONS = [name for name in HORIZON if name not in ("loss", "horizon_loss_from_middle")]
ON_CPU = {"layers": 4, "batch": 1, "tokens": 64, "rounds": 1}
ON_GPU = {"layers": 48, "batch": 8, "tokens": 1024, "rounds": 5}


@dataclass(frozen=True)
class Cost:
    """Median seconds of some runs of one work; its peak of allocated bytes, model included."""

    work: str
    seconds: float
    forwards: float
    peak: int | None
    runs: int


Measured = tuple[Session, list[Cost]]


def gpt2_xl(spec: ModelSpec, layers: int) -> Any:
    """GPT2-XL's shape, but for the number of layers, with the weights it would be trained from."""
    config = transformers.GPT2Config(
        n_layer=layers, n_embd=1600, n_head=25, vocab_size=50257, n_positions=1024,
        bos_token_id=BOS, eos_token_id=BOS, pad_token_id=BOS,
    )  # fmt: skip
    torch.manual_seed(0)
    how = {"dtype": getattr(torch, spec.torch_dtype), "attn_implementation": spec.attention}
    with torch.device(spec.device):
        model = transformers.AutoModelForCausalLM.from_config(config, **how)
    model.config.architectures = [type(model).__name__]  # as a saved model says
    return model.eval()


def loaded_as(spec: ModelSpec, layers: int) -> LoadedModel:
    """The model as if it had been loaded; its tokenizer knows bytes alone, which costs nothing."""
    check_device(spec.device)
    set_products(spec)
    return LoadedModel(spec.name, "random", gpt2_xl(spec, layers), tokenizer(), spec)


def prompts_of(batch: int) -> Prompts:
    """Long ones: each begins with another passage and goes on with the rest."""
    texts = shipped().texts
    turned = (" ".join(texts[i:] + texts[:i]) for i in range(batch))
    return Prompts("passages in a row", tuple(turned))


class Timer:
    """Times works on one device, and says how many plain forward passes each costs."""

    def __init__(self, device: str) -> None:
        self._on_gpu, self._device = device.startswith("cuda"), device
        self.costs: list[Cost] = []

    def take(self, name: str, work: Callable[[], object], runs: int, warm: bool = True) -> None:
        if warm:
            work()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        seconds = statistics.median(self._once(work) for _ in range(runs))
        peak = torch.cuda.max_memory_allocated(self._device) if self._on_gpu else None
        first = self.costs[0].seconds if self.costs else seconds
        self.costs.append(Cost(name, seconds, seconds / first, peak, runs))

    def _once(self, work: Callable[[], object]) -> float:
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize(self._device)


def plain_forward(model: Any, batch: int, tokens: int, device: str) -> Callable[[], object]:
    rows = torch.randint(5, VOCABULARY, (batch, tokens), device=device)

    @torch.inference_mode()
    def forward() -> object:
        return model(input_ids=rows, use_cache=False).logits

    return forward


def costs(loaded: LoadedModel, batch: int, tokens: int, rounds: int, horizons: bool) -> Measured:
    timer = Timer(loaded.device)
    # First: TransformerLens takes over the model's modules.
    forward = plain_forward(loaded.model, batch, tokens, loaded.device)
    timer.take("plain forward pass with logits", forward, rounds)
    session = open_loaded(loaded, prompts_of(batch), tokens, names=["W_in_frobenius"])
    rows = batch_of(session.encoded, longest_first(session.encoded), loaded.device)
    norms, all_of_it = (Recording(session, list(names)) for names in (QUANTITIES, IN_PASS))
    timer.take("instrumented pass, norms and rates", lambda: norms.take(rows), rounds)
    timer.take("instrumented pass, every measurement", lambda: all_of_it.take(rows), rounds)
    timer.take("getting ready for it, once a model", lambda: Recording(session, list(IN_PASS)), 1)
    backend, depth = session.backend, session.backend.anatomy.n_layers
    of_weights = [name for name in OF_WEIGHTS if name not in session.missing]
    timer.take("statistics of the weights", lambda: folded_statistics(backend, of_weights), 1)
    if horizons:
        every = f"all {depth} layer horizons"
        timer.take(every, lambda: run_session(session, OF_HORIZONS), 1, warm=False)
    return session, timer.costs


def markdown(document: dict[str, Any]) -> str:
    shape = document["shape"]
    said = document["environment"]
    where = said["accelerator"] if document["device"] != "cpu" else "the CPU"
    billions = document["parameters"] / 1e9
    lines = [
        f"GPT2-XL's shape with {shape['layers']} layers ({billions:.2f} billion random "
        f"parameters), {shape['batch']} x {shape['tokens']} tokens, {document['dtype']}, "
        f"{document['attention']} attention, through {document['backend']}, on {where}; "
        f"torch {said['torch']}, transformers {said['transformers']}.",
        "",
        "| work | seconds | plain forward passes | peak memory |",
        "| --- | --- | --- | --- |",
    ]
    for cost in document["costs"]:
        peak = "not measured" if cost["peak"] is None else f"{cost['peak'] / 2**30:.2f} GiB"
        lines.append(
            f"| {cost['work']} | {cost['seconds']:.3f} | {cost['forwards']:.2f} | {peak} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--backend", default="transformers")
    parser.add_argument("--attention", help="sdpa, eager or flash_attention_2")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--no-horizons", dest="horizons", action="store_false")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), metavar="FOLDER")
    options = parser.parse_args(arguments)
    default = ON_CPU if options.device == "cpu" else ON_GPU
    size = {name: getattr(options, name) or number for name, number in default.items()}
    rounds = size.pop("rounds")
    how = {name: getattr(options, name) for name in ("dtype", "device", "backend")}
    # TransformerLens computes attention as eager does, and so must the pass it is held against.
    attention = "eager" if options.backend == "transformer_lens" else "sdpa"
    spec = ModelSpec("gpt2-xl-shape", attention=options.attention or attention, **how)
    loaded = loaded_as(spec, size["layers"])
    parameters = sum(p.numel() for p in loaded.model.parameters())
    session, taken = costs(loaded, size["batch"], size["tokens"], rounds, options.horizons)
    document = {
        "shape": size,
        "parameters": parameters,
        "device": options.device,
        "dtype": spec.dtype,
        "backend": spec.backend,
        "attention": spec.attention,
        "environment": environment(session.backend, options.device),
        "costs": [asdict(cost) for cost in taken],
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "xl.json").write_text(json.dumps(document, indent=1) + "\n")
    (options.out / "xl.md").write_text(markdown(document))
    print(markdown(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
