"""The terminal's table over horizons: what stands in a row, and where there is none."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from horizon_runs import horizon_run, per_token
from report_runs import a_run

from residcheck.console import show_horizon
from residcheck.curves import Run

ROW = re.compile(r"^│ +(\d+) │ +(\d+) │ +([\d.]+)(?: \[([\d.]+), ([\d.]+)\])? │(.*)$", re.M)


def shown(run: Run, capsys: pytest.CaptureFixture[str]) -> str:
    show_horizon(run)
    return capsys.readouterr().out


def rows(text: str) -> list[tuple[str, ...]]:
    return [match.groups() for match in ROW.finditer(text)]


def test_every_horizon_has_a_row_with_what_was_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = horizon_run(layers=12)
    text = shown(run, capsys)
    assert text.startswith("org/tiny: layer horizon, 12 layers, float32 on x, x (raw weights)\n")
    assert "what is further back than k layers is removed, in every layer" in text
    assert "12 prompts, 72 tokens (a.txt)" in text
    found = rows(text)
    assert [(row[0], row[1]) for row in found] == [(str(k), str(12 - k)) for k in range(1, 13)]
    loss = run["horizon_loss"].prompt_mean.mean(0)
    for row, mean in zip(found, loss, strict=True):
        assert float(row[2]) == pytest.approx(mean, abs=6e-4)
        assert float(row[3]) < float(row[2]) < float(row[4])
    over, divergence, same = (part.strip() for part in found[0][5].split("│")[:3])
    assert float(over) == pytest.approx(loss[0] - run["loss"].prompt_mean.mean(), abs=6e-4)
    assert (divergence, same) == ("6.000", "14.3%")
    assert re.search(r"the model as it is: 2\.99\d \[2\.9\d+, 3\.0\d+\]", text)


def test_the_half_that_says_little_is_below_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(horizon_run(layers=7), capsys)
    above = text[: text.index("├")]
    assert [row[0] for row in rows(above)] == ["1", "2", "3"]
    assert text.count("├") == 1
    assert "below the line: above half the depth, where few layers are touched" in text


def test_where_one_layer_is_enforced_there_is_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(horizon_run(layers=7, enforced="at", layer=4), capsys)
    assert "├" not in text
    assert "below the line" not in text
    assert [row[1] for row in rows(text)] == ["1"] * 4 + ["0"] * 3
    assert "at layer 4 alone" in text


def test_deep_models_show_rows_spread_over_the_depth(capsys: pytest.CaptureFixture[str]) -> None:
    shown_rows = [int(row[0]) for row in rows(shown(horizon_run(layers=96), capsys))]
    assert len(shown_rows) == 25
    assert (shown_rows[0], shown_rows[-1]) == (1, 96)
    assert max(np.diff(shown_rows)) <= 5
    assert len(rows(shown(horizon_run(layers=32), capsys))) == 32


def test_sublayers_have_a_row_each(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(horizon_run(layers=4, unit="sublayers"), capsys)
    assert "further back than k sublayers" in text
    assert [row[1] for row in rows(text)] == ["4", "3", "3", "2", "2", "1", "1", "0"]


def test_how_far_back_the_model_looks_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(horizon_run(), capsys)
    # 6 exp(-(k - 1) / 4) comes within 0.1 at k = 1 + 4 log 60 = 17.4.
    assert "effective horizon by loss = 18 [18, 18] layers" in text
    assert "effective horizon by KL = 18 [18, 18] layers" in text
    assert "from there on within 0.1 nats" in text
    assert "decay of the loss with k: exponential fits best by AIC" in text
    assert re.search(r"tau of the exponential = 4 .*R² 1\.000, best on 100% of resampled", text)
    assert text.index("tau of") < text.index("power law")


def test_a_horizon_as_long_as_the_model_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(horizon_run(layers=10), capsys)
    assert "effective horizon by loss = 10 [10, 10] layers" in text
    assert "not within them at any horizon below the depth" in text


def test_too_few_horizons_have_no_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no shape could be fitted" in shown(horizon_run(layers=3), capsys)


def test_few_prompts_have_no_intervals_and_it_is_said_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = shown(horizon_run(layers=5, prompts=7), capsys)
    assert {row[3] for row in rows(text)} == {None}
    assert "no intervals: 7 prompt(s) say too little, 8 are needed" in text
    assert "95 %" not in text
    assert "effective horizon" not in text


def test_a_prompt_that_predicts_nothing_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    run = horizon_run(layers=5, prompts=8)
    curves = dict(run.curves)
    for name, curve in curves.items():
        values = curve.values.copy()
        values[3] = np.nan
        curves[name] = replace(curve, values=values)
    text = shown(replace(run, curves=curves), capsys)
    assert "nan" not in text
    assert "7 prompt(s) say too little" in text


def test_only_what_was_measured_has_a_column(capsys: pytest.CaptureFixture[str]) -> None:
    run = horizon_run(layers=5)
    loss = {"horizon_loss": run["horizon_loss"]}
    text = shown(replace(run, curves=loss, complete=False), capsys)
    assert "interrupted" in text
    assert not any(word in text for word in ("KL", "top-1", "baseline"))
    assert len(rows(text)) == 5


@pytest.mark.parametrize("run", [a_run(), replace(horizon_run(), horizon=None)])
def test_a_run_without_horizons_says_so(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(run, capsys) == "the run of org/tiny holds no loss over horizons\n"


def test_rounding_below_zero_is_no_divergence(capsys: pytest.CaptureFixture[str]) -> None:
    run = horizon_run(layers=5)
    noise = replace(run["horizon_kl"], values=per_token(np.full(5, -1e-7), 12, noise=0.0))
    text = shown(replace(run, curves={**run.curves, "horizon_kl": noise}), capsys)
    assert "-0.000" not in text


@pytest.mark.parametrize("width", [51, 60, 80])
@pytest.mark.parametrize("colours", ["NO_COLOR", "FORCE_COLOR"])
def test_narrow_terminals_lose_no_number(
    width: int, colours: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv(colours, "1")
    monkeypatch.setenv("COLUMNS", str(width))
    text = shown(horizon_run(layers=6, id="org/[bold]odd"), capsys)
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert "org/[bold]odd" in plain
    assert max(map(len, plain.splitlines())) <= width
    assert "…" not in plain
    assert {"+6.000", "14.3%", "9.012]", "6.000"} <= set(re.findall(r"[+\d.%\]]+", plain))
    assert "\x1b[2m" in text  # the lower half is dimmed, which is no colour
    assert not re.search(r"\x1b\[3\d", text)
