"""Layer horizons as a measurement: planted ones, samples, memory, interruptions, mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, Mock

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from naive_horizons import naive_horizons
from tiny import Tiny, new_model

from residcheck.cli import main
from residcheck.corpus import Prompts, shipped
from residcheck.curves import load_run, save_run
from residcheck.errors import ExitStatus, UnsupportedModelError, UsageError
from residcheck.horizon import Variant
from residcheck.measure import (
    HorizonOptions,
    MeasurementInterrupted,
    Session,
    open_session,
    run_session,
)
from residcheck.models import parse_spec
from residcheck.names import HORIZON
from residcheck.planted.tokens import VOCABULARY
from residcheck.stats import effective_horizon

TEXTS = tuple(
    text[:length] for text, length in zip(shipped().texts, (90, 40, 70, 25, 60), strict=False)
)
PROMPTS = Prompts("five", TEXTS)
NAMES = list(HORIZON)


def session_of(folder: Path, prompts: Prompts = PROMPTS, **options: str) -> Session:
    return open_session(parse_spec(str(folder)).with_options(**options), prompts, 24)


def test_a_run_holds_what_the_naive_loop_finds(tiny: Tiny, tmp_path: Path) -> None:
    """Prompts of different lengths, in batches of two, through a run file and back."""
    session = session_of(
        tiny("llama", num_hidden_layers=4), dtype="float64", backend="transformers"
    )
    save_run(run_session(session, NAMES, batch_size=2), tmp_path / "run.json")
    run = load_run(tmp_path / "run.json")
    model = new_model("llama", num_hidden_layers=4).double()
    for index, ids in enumerate(session.encoded.ids):
        tokens = torch.tensor([ids])
        mask = torch.ones_like(tokens)
        whole = naive_horizons(model, "llama", tokens, mask, Variant())
        upper = naive_horizons(model, "llama", tokens, mask, Variant(enforced="from", layer=2))
        for name, field, scores in (
            ("horizon_loss", "loss", whole),
            ("horizon_kl", "kl", whole),
            ("horizon_top1", "top1", whole),
            ("horizon_loss_from_middle", "loss", upper[:2]),
        ):
            expected = np.stack([getattr(s, field).numpy() for s in scores], axis=-1)
            found = run[name].values[index]
            assert np.isnan(found[0]).all()  # nothing predicts BOS
            assert np.isnan(found[len(ids) :]).all()
            assert np.allclose(found[1 : len(ids)], expected, rtol=1e-9, atol=1e-9), name
        full = model(input_ids=tokens).logits[0, :-1].log_softmax(-1)
        loss = -full.gather(-1, tokens[0, 1:, None])[:, 0].detach().numpy()
        assert np.allclose(run["loss"].values[index, 1 : len(ids)], loss, rtol=1e-9)
    stored = json.loads((tmp_path / "run.json").read_text())
    assert stored["curves"]["horizon_loss"]["horizon"] == [1, 2, 3, 4]
    assert stored["curves"]["horizon_loss"]["mean"] == pytest.approx(run["horizon_loss"].mean)
    assert stored["curves"]["horizon_loss"]["mean"][-1] == pytest.approx(
        stored["curves"]["loss"]["mean"], rel=1e-14
    )
    assert stored["horizon"]["ablation"] == "zero"
    assert stored["horizon"]["prompts"]["sha256"] == stored["prompts"]["sha256"]


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_batching_changes_nothing(tiny: Tiny, ablation: Any) -> None:
    """Little memory: prompts one by one, horizons one by one, few tokens unembedded at a time."""
    session = session_of(tiny("gpt2", n_layer=6), dtype="float64")
    smallest, message = 1 << 16, ""
    runs = []
    for memory in (smallest, 2 << 20, 1 << 30):
        how = HorizonOptions(Variant(ablation=ablation), memory=memory)
        try:
            runs.append(run_session(session, NAMES, 5, how))
        except UsageError as error:
            message = str(error)
    assert "--memory 1 MiB is too little" in message
    assert len(runs) == 2
    for name in NAMES:
        one, other = (run[name].values for run in runs)
        assert np.allclose(one, other, rtol=1e-10, atol=1e-10, equal_nan=True)


def planted_run(depth: int, reach: int) -> Any:
    spec = parse_spec(f"planted:layers={depth},horizon={reach},backend=transformers")
    return run_session(open_session(spec, Prompts("some", shipped().texts[:8]), 24), NAMES)


def excess(run: Any) -> np.ndarray[Any, Any]:
    """Loss over the model's own: prompt x horizon."""
    difference: np.ndarray[Any, Any] = (
        run["horizon_loss"].prompt_mean - run["loss"].prompt_mean[:, None]
    )
    return difference


@pytest.mark.parametrize("reach", [1, 3, 5])
def test_a_planted_horizon_is_found(reach: int) -> None:
    depth = 8
    run = planted_run(depth, reach)
    loss = run["horizon_loss"].mean
    assert (loss[reach - 1 :] < run["loss"].mean + 0.1).all()
    assert (loss[: reach - 1] > run["loss"].mean + 1).all()
    found = effective_horizon(excess(run))
    assert found.value == reach
    # Where nothing is read all logits are equal, and of these the first token's is not it.
    assert loss[: reach - 1] == pytest.approx(np.log(VOCABULARY), rel=1e-6)
    assert (run["horizon_top1"].mean[: reach - 1] < 0.1).all()


def test_a_model_without_a_horizon_is_not_given_one() -> None:
    """The last layer reads the embedding: every horizon below the depth loses it."""
    depth = 8
    run = planted_run(depth, reach=depth)
    found = effective_horizon(excess(run))
    assert found.value == found.low == found.high == depth


def test_a_sample_is_whole_prompts_while_they_are_few(tiny: Tiny) -> None:
    few = run_session(session_of(tiny("gpt2")), NAMES, horizon=HorizonOptions(sample=True))
    assert few.horizon is not None
    assert few.horizon.prompts == few.prompts
    many = Prompts("many", shipped().texts)
    session = open_session(parse_spec(str(tiny("gpt2"))), many, 64)
    run = run_session(session, [*NAMES, "resid_post_norm"], horizon=HorizonOptions(sample=True))
    assert run.horizon is not None
    assert (run.horizon.prompts.count, run.horizon.prompts.tokens) == (16, 16 * 32)
    assert run["horizon_loss"].values.shape[:2] == (16, 32)
    assert run["resid_post_norm"].values.shape[0] == run.prompts.count == len(many.texts)


def test_ctrl_c_keeps_the_prompts_that_were_done(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tiny("llama", num_hidden_layers=4))
    whole = run_session(session, NAMES, batch_size=2)
    head = session.backend.unembed
    calls = Mock(wraps=head, side_effect=[DEFAULT] * 8 + [KeyboardInterrupt])
    monkeypatch.setattr(session.backend, "unembed", calls)
    with pytest.raises(MeasurementInterrupted) as caught:
        run_session(session, NAMES, batch_size=2)
    run = caught.value.run
    assert run is not None
    assert not run.complete
    assert run.horizon is not None
    assert run.prompts.count == run.horizon.prompts.count == 2
    assert run["horizon_loss"].mean.shape == whole["horizon_loss"].mean.shape


def test_a_model_whose_blocks_need_each_other_is_said_to(
    tiny: Tiny,
) -> None:
    """A block that writes twice as much after another one ran, as where states are handed on."""
    session = session_of(tiny("llama"), backend="transformers")
    blocks: Any = session.backend.stack  # type: ignore[attr-defined]
    handed_on: list[int] = []

    def take(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        there, handed_on[:] = bool(handed_on), []
        return output * 2 if there else output

    embedding = session.loaded.model.model.embed_tokens
    embedding.register_forward_pre_hook(lambda *_: handed_on.clear())
    blocks[0].mlp.register_forward_hook(lambda *_: handed_on.append(1))
    blocks[1].mlp.register_forward_hook(take)
    message = "layer 1: mlp_out of the block alone is off by"
    with pytest.raises(UnsupportedModelError, match=message):
        run_session(session, NAMES)
    run = run_session(session, [*NAMES, "resid_post_norm"])
    assert list(run.curves) == ["resid_post_norm"]
    assert message in run.model.missing["horizon_loss"]


def test_a_model_of_one_layer_has_one_horizon_and_no_control(tiny: Tiny) -> None:
    run = run_session(session_of(tiny("gpt2", n_layer=1)), NAMES)
    assert run["horizon_loss"].mean.item() == pytest.approx(run["loss"].mean.item())
    assert "horizon_loss_from_middle" not in run.curves
    assert "one layer" in run.model.missing["horizon_loss_from_middle"]


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no layer": (["--enforced", "at"], "needs that layer"),
    "layer too many": (["--layer", "2"], "takes no layer"),
    "beyond the depth": (["--enforced", "from", "--layer", "3"], "has 3 layers"),
    "little memory": (["--memory", "0.00001"], "too little"),
    "unknown variant": (["--ablation", "median"], "'zero', 'mean'"),
    "one token": (["--max-tokens", "1"], "no token beside BOS"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_message(tiny: Tiny, mistake: str) -> None:
    arguments, message = MISTAKES[mistake]
    result = CliRunner().invoke(main, ["horizon", str(tiny("gpt2")), *arguments])
    assert result.exit_code == ExitStatus.USAGE
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_the_command_writes_run_and_report(tiny: Tiny, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(text[:80] for text in shipped().texts[:10]))
    out, page = tmp_path / "run.json", tmp_path / "page.html"
    result = CliRunner().invoke(
        main,
        ["horizon", str(tiny("gpt2", n_layer=6)), "--prompts", str(prompts), "--max-tokens", "16",
         "--ablation", "mean", "--json", str(out), "--report", str(page)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    run = load_run(out)
    assert run.horizon is not None
    assert run.horizon.ablation == "mean"
    assert set(run.curves) == set(NAMES)
    assert run["horizon_loss"].mean[-1] == pytest.approx(run["loss"].mean)
    assert "horizon-decay" in page.read_text()
