"""The report: every run leaves a readable page, whatever its metrics hold, and the page stands alone."""

from __future__ import annotations

import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from biometro.evaluation.plots import MAX_PLACES, project, running_quantiles
from biometro.evaluation.report import PANELS, SERIES, write_report

METRO = [
    *("aux_loss", "aux_accuracy", "replaced", "rtd_loss", "rtd_gain", "rtd_ap"),
    *("clm_loss", "clm_accuracy_replaced", "clm_accuracy_kept", "clm_masked_loss"),
]
MLM = ["mlm_loss", "mlm_masked_loss", "mlm_accuracy"]
Row = dict[str, Any]


def rows_of(objective: list[str], steps: int, valid_every: int = 10) -> list[Row]:
    """Rows of metrics.jsonl whose values differ by key, so that no curve is another's double."""
    random = np.random.default_rng(0)
    rows: list[Row] = []
    for step in range(1, steps + 1):
        fall = np.exp(-step / steps)
        values = {key: 0.1 + 0.05 * i + 0.1 * fall for i, key in enumerate(objective)}
        common = {
            "step": step, "split": "train", "tokens": 4096 * step, "flops": 1e9 * step, "loss": 20 * fall,
            "seconds": step / 2, "tokens_per_s": 8192.0, "lr": fall, "grad_norm": float(random.lognormal()),
        }  # fmt: skip
        rows.append(common | values)
        if valid_every and step % valid_every == 0:
            rows.append({"step": step, "split": "valid"} | values)
    return rows


def page_of(folder: Path, rows: list[Row], **more: Any) -> str:
    options = {"title": "a run", "facts": {"seed": "1"}, "metrics": rows} | more
    write_report(folder / "report.html", **options)
    assert [path.name for path in folder.iterdir()] == ["report.html"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "nan" not in re.sub(r'"data:[^"]*"', "", page).lower()
    return page


def titles(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


@pytest.mark.parametrize("objective", [MLM, METRO], ids=["mlm", "metro"])
def test_every_series_has_its_curve(tmp_path: Path, objective: list[str]) -> None:
    page = page_of(tmp_path, rows_of(objective, 60), unigram_entropy=2.894)
    for key in [*objective, "loss", "lr", "grad_norm", "tokens_per_s", "flops"]:
        assert f"</svg>{SERIES[key][0]}<td>" in page, key
    shown = [panel.title for panel in PANELS if set(panel.keys) & {*objective, *rows_of([], 1)[0]}]
    assert titles(page) == shown
    assert "unigram entropy, held out<td colspan=2>2.894" in page


def test_the_base_rate_stands_beside_the_rtd_loss(tmp_path: Path) -> None:
    values = {"rtd_loss": 0.3, "rtd_gain": 0.125}
    rows = [{"step": step, "split": "train", "tokens": step} | values for step in range(1, 9)]
    assert "entropy of the base rate<td>0.425<td>" in page_of(tmp_path, rows)


def test_objectives_to_come_are_drawn_too(tmp_path: Path) -> None:
    rows = [row | {"contrastive_loss": 5.0, "temperature": 0.07, "note": "word"} for row in rows_of([], 20)]
    page = page_of(tmp_path, rows)
    assert titles(page)[:1] == ["contrastive_loss"]
    assert titles(page)[-1:] == ["Other: temperature"]
    assert "note" not in page


@pytest.mark.parametrize("key", ["loss", "clm_loss"])
def test_the_same_loss_is_drawn_once(tmp_path: Path, key: str) -> None:
    rows, title = rows_of(METRO, 20), {"loss": "Weighted total", "clm_loss": "CLM loss where it learns"}[key]
    assert title in titles(page_of(tmp_path, rows))
    same = [row | {key: row["clm_masked_loss"]} for row in rows]
    assert title not in titles(page_of(tmp_path, same))


@pytest.mark.parametrize("rows", [[], rows_of(METRO, 1, 0), rows_of(METRO, 1, 1), rows_of(METRO, 7, 0)])
def test_short_runs_and_runs_without_held_out_rows(tmp_path: Path, rows: list[Row]) -> None:
    page = page_of(tmp_path, rows, unigram_entropy=2.9)
    assert ("logged no metrics" in page) == (not rows)
    assert len(titles(page)) == (12 if rows else 0)
    assert ("<td>held out" in page) == any(row["split"] == "valid" for row in rows)


def test_held_out_rows_alone(tmp_path: Path) -> None:
    rows = [row for row in rows_of(MLM, 30) if row["split"] == "valid"]
    assert titles(page_of(tmp_path, rows, unigram_entropy=2.9)) == [
        "Loss at masked positions",
        "MLM accuracy",
    ]


def test_missing_and_unfinite_values_are_left_out_and_named(tmp_path: Path) -> None:
    rows = rows_of(MLM, 50)
    for row in rows[20:24]:
        row["mlm_loss"] = None if row["step"] % 2 else float("nan")
    rows[30]["grad_norm"] = float("inf")
    for row in rows[5:9]:
        row.pop("mlm_accuracy")
        row.pop("tokens", None)
    page = page_of(tmp_path, rows)
    bad = [row for row in rows[20:24] if row["split"] == "train"]
    assert f"mlm_loss, train: {len(bad)} of 50 rows, first at step {bad[0]['step']}" in page
    assert "grad_norm, train: 1 of 50 rows" in page
    assert "mlm_accuracy, train:" not in page


def test_a_series_without_a_single_number_has_no_panel(tmp_path: Path) -> None:
    rows = [row | {"mlm_accuracy": None} for row in rows_of(MLM, 12)]
    page = page_of(tmp_path, rows)
    assert "MLM accuracy" not in titles(page)
    assert "mlm_accuracy, train: 12 of 12 rows" in page


def test_repeated_steps_count_once(tmp_path: Path) -> None:
    rows = rows_of(MLM, 12, 0)
    again = [row | {"lr": 0.125} for row in rows[6:]]
    assert "learning rate<td>0.125<td>" in page_of(tmp_path, rows + again)


def test_a_long_run_is_quick_and_small(tmp_path: Path) -> None:
    rows = rows_of(METRO, 100_000, 100)
    began = time.process_time()
    page = page_of(tmp_path, rows, unigram_entropy=2.9)
    assert time.process_time() - began < 5
    assert len(page) < 2_000_000


def test_the_median_line_follows_the_data() -> None:
    x_N = np.arange(5000.0)
    places, (low, _, high) = running_quantiles(x_N, x_N % 2, 0.04)
    assert len(places) == 200
    assert places[0] == 0
    assert places[-1] == 4999
    assert (low[5:] == 0).all()
    assert (high[5:] == 1).all()
    places, quantiles = running_quantiles(x_N[:20], x_N[:20] ** 2, 0.04)
    np.testing.assert_array_equal(quantiles, np.tile(x_N[:20] ** 2, (3, 1)))


@pytest.mark.parametrize("count", [0, 1, 3, 12, 500])
def test_maps(tmp_path: Path, count: int) -> None:
    random = np.random.default_rng(0)
    embeddings = random.standard_normal((count, 24)).astype(np.float32)
    colours = {
        "length": np.arange(count),
        "family <b>": [f"<i>{i % 3}" for i in range(count)],
        "cluster": [str(i) for i in range(count)],
    }
    page = page_of(tmp_path, [], embeddings=embeddings, colours=colours)
    names = [title for title in titles(page) if title.startswith("Held-out")]
    assert len(names) == (3 if count else 0)
    assert "<b>" not in page
    assert "<i>" not in page
    if count:
        assert ("t-SNE 1" if count > 9 else "PCA 1") in page
        assert ("too many for a legend" in page) == (count > 12)
        assert f"&lt;i&gt;0 <small>{(count + 2) // 3}" in page


def test_a_map_without_colours_and_wrong_colours(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    assert titles(page_of(tmp_path, [], embeddings=embeddings)) == ["Held-out embeddings"]
    with pytest.raises(ValueError, match=r"'length'. has 4 values for 5 embeddings"):
        write_report(tmp_path / "x.html", title="", facts={}, metrics=[], embeddings=embeddings,
                     colours={"length": np.arange(4)})  # fmt: skip


def test_projection_is_deterministic_and_survives_odd_rows() -> None:
    embeddings = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    embeddings[7] = np.nan
    shown, places, method = project(embeddings)
    assert method == "t-SNE"
    assert 7 not in shown
    assert len(shown) == len(places) == 39
    np.testing.assert_array_equal(places, project(embeddings)[1])
    for odd in (np.ones((20, 8), np.float32), embeddings[:20, :1], np.full((3, 8), np.nan, np.float32)):
        shown, places, method = project(odd)
        assert method == "PCA"
        assert places.shape == (len(shown), 2)
        assert np.isfinite(places).all()


def test_many_sequences_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("biometro.evaluation.plots.MAX_PLACES", 5)
    shown, _, _ = project(np.random.default_rng(0).standard_normal((MAX_PLACES + 1, 4)).astype(np.float32))
    assert shown.tolist() == [0, 500, 1000, 1500, 2000]


def test_text_is_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('x & y')</script>"
    rows = [row | {f"{evil}_loss": 1.0, evil: 2.0} for row in rows_of([], 5)]
    page = page_of(tmp_path, rows, title=evil, facts={evil: evil, "maths": "$x_1$"})
    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;") >= 7


def test_the_page_stands_alone(tmp_path: Path) -> None:
    embeddings = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    facts = {"source": "https://example.org/a.fasta"}
    page = page_of(tmp_path, rows_of(METRO, 30), facts=facts, embeddings=embeddings,
                   colours={"length": np.arange(30.0)})  # fmt: skip
    addresses: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "link", "iframe")
            addresses.extend(value or "" for name, value in attrs if name.split(":")[-1] in ("href", "src"))

    Reader().feed(page)
    assert addresses
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in addresses)
    assert page.count("http") == 1  # the fact above, as text
    assert not re.search(r"@import|url\((?!#)", page)


def test_the_same_data_give_the_same_page(tmp_path: Path) -> None:
    rows = rows_of(METRO, 30)
    assert page_of(tmp_path, rows) == page_of(tmp_path, rows)


def test_runs_at_the_edges_of_the_axes(tmp_path: Path) -> None:
    first = {"step": 0, "split": "train", "tokens": 0, "mlm_loss": 3.0, "lr": 0.0, "grad_norm": 0.0}
    assert len(titles(page_of(tmp_path, [first], unigram_entropy=float("nan")))) == 3
    wild = [{"step": step, "split": "train", "grad_norm": 10.0 ** (step % 9)} for step in range(1, 300)]
    assert titles(page_of(tmp_path, wild)) == ["Gradient norm"]
    long = rows_of(MLM, 30)
    assert "training time (s)" in page_of(tmp_path, long)
    for row in long:
        row["seconds"] = 3600.0 * row["step"]
    assert "training time (h)" in page_of(tmp_path, long)
