"""The scripts of ``nox -s gpu``: what they say of what they found, and that they run on a CPU."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from gpu import agreement, xl
from tiny import Tiny

from residcheck.comparison import Row, Sameness
from residcheck.measure import measure


def test_the_largest_share_of_each_bound_is_told() -> None:
    class Fixed(Row):
        margin = property(lambda self: self.size / self.bound)  # type: ignore[assignment]

    rows = [
        Fixed("resid_post_norm", Sameness.SAME, "mean at layer 3", size=2e-6, bound=1e-5),
        Fixed("mlp_out_norm", Sameness.SAME, "mean at layer 1", size=4e-6, bound=1e-5),
        Fixed("bos_spread", Sameness.DIFFERENT, "values at layer 0", size=math.inf, bound=1e-4),
        Fixed("horizon_kl", Sameness.SAME, "mean at horizon 1", size=3e-4, bound=3e-3),
    ]
    found = agreement.largest(rows)
    assert found["curve"]["curve"] == "mlp_out_norm"
    assert found["curve"]["share"] == pytest.approx(0.4)
    assert found["truncated"]["share"] == pytest.approx(0.1)
    assert found["token"]["share"] is None  # infinite


def test_curves_of_the_cpu_agree_with_themselves(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def few(*args: Any, **kwargs: Any) -> Any:
        return measure(*args, **kwargs, names=["resid_post_norm", "horizon_loss", "bos_spread"])

    monkeypatch.setattr(agreement, "measure", few)
    spec = f"{tiny('llama')},backend=transformers"
    assert agreement.main(["--device", "cpu", "--model", spec, "--out", str(tmp_path)]) == 0
    document = json.loads((tmp_path / "agreement.json").read_text())
    (model,) = document["models"]
    assert model["shares"] == {"resid_post_norm": 0, "horizon_loss": 0, "bos_spread": 0}
    assert model["different"] == []
    assert "| transformers | 0.000 | 0.000 | 0.000 | yes |" in capsys.readouterr().out


def test_costs_are_told_in_plain_forward_passes() -> None:
    timer = xl.Timer("cpu")
    seconds = iter([2.0, 3.0, 1.0, 6.0])
    timer._once = lambda work: next(seconds)  # type: ignore[method-assign]
    timer.take("plain", list, 3)
    timer.take("all of it", list, 1, warm=False)
    assert [(cost.seconds, cost.forwards, cost.peak) for cost in timer.costs] == [
        (2.0, 1.0, None),
        (6.0, 3.0, None),
    ]


def test_the_page_says_what_was_run_where() -> None:
    environment = {"accelerator": "X100", "torch": "1", "transformers": "2"}
    cost = {"work": "plain", "seconds": 0.5, "forwards": 1.0, "peak": 3 << 29, "runs": 1}
    page = xl.markdown(
        {
            "shape": {"layers": 48, "batch": 8, "tokens": 1024},
            "parameters": 1_557_611_200,
            "device": "cuda",
            "dtype": "float32",
            "attention": "sdpa",
            "backend": "transformers",
            "environment": environment,
            "costs": [cost, cost | {"peak": None}],
        }
    )
    assert "48 layers (1.56 billion random parameters), 8 x 1024 tokens, float32, sdpa" in page
    assert "on X100" in page
    assert "| plain | 0.500 | 1.00 | 1.50 GiB |" in page
    assert "| 1.00 | not measured |" in page
