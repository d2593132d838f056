"""Pictures of importance: what the run's scores look like, and what sorting does to sub-networks."""

import csv
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from PIL import Image
from reporting_fixtures import write_importance

from nas_llm.reporting import importance_charts, write_report
from nas_llm.reporting.importance_scores import falling, read, spreads
from nas_llm.reporting.sorting_plot import COLUMNS, plot_sorting
from nas_llm.run_directory import IMPORTANCE_FILE


def pictures(run_dir) -> list[ElementTree.Element]:
    scores = read(run_dir)
    assert scores is not None
    return [ElementTree.fromstring(chart) for _, chart in importance_charts.charts(scores)]


def test_what_is_read_is_what_was_scored(tmp_path):
    assert read(tmp_path) is None
    written = write_importance(tmp_path, method="Wanda()")
    scores = read(tmp_path)
    assert scores is not None
    assert (scores.method, scores.heads_per_group) == ("Wanda()", 2)
    assert scores.attention.shape == (6, 8)
    assert np.allclose(scores.attention[3, 5], written["layers.3.heads_per_group"][2, 1])
    assert np.allclose(scores.grouped[4], written["layers.4.kv_groups"])
    (tmp_path / IMPORTANCE_FILE).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged"):
        read(tmp_path)


def test_curves_fall_from_the_best_unit_to_the_last():
    values = np.array([3.0, 0.0, 9.0, 1.0, 4.0])
    assert falling(values, 10) == [(1, 9), (2, 4), (3, 3), (4, 1), (5, 0)]
    assert falling(values, 10, positive=True)[-1] == (4, 1)
    thinned = falling(np.arange(1000.0), 7)
    assert len(thinned) == 7
    assert (thinned[0], thinned[-1]) == ((1, 999), (1000, 0))
    assert spreads(np.geomspace(1, 100, 50))
    assert not spreads(np.linspace(-1, 100, 50))


def test_every_axis_that_has_scores_has_a_picture(tmp_path):
    written = write_importance(tmp_path)
    neurons, heads, groups, hidden, layers = pictures(tmp_path)
    assert len(neurons.findall(".//polyline")) == 6
    assert len(hidden.findall(".//polyline")) == 1
    for chart, key, count in ((heads, "heads_per_group", 48), (groups, "kv_groups", 24)):
        cells = chart.findall("rect")
        assert len(cells) == count
        values = np.concatenate([written[f"layers.{i}.{key}"].flatten() for i in range(6)])
        shades = [float(cell.get("fill-opacity")) for cell in cells]
        assert shades[values.argmax()] == 1
        assert np.corrcoef(shades, values)[0, 1] > 0.999
    heights = [float(bar.get("height")) for bar in layers.findall("rect")]
    assert np.allclose(np.array(heights) / heights[0], written["layers"] / 5, atol=0.01)
    titles = [bar.find("title").text for bar in layers.findall("rect")]
    assert titles[2] == "layer 2: 0.500, kept as number 6"


def test_bars_of_scores_below_zero_hang_from_zero(tmp_path):
    from safetensors.numpy import save_file

    save_file({"layers": np.array([1.0, -1.0, 0.0], dtype=np.float32)}, tmp_path / IMPORTANCE_FILE)
    (layers,) = pictures(tmp_path)
    up, down, none = layers.findall("rect")
    assert float(up.get("y")) + float(up.get("height")) == pytest.approx(float(down.get("y")))
    assert float(none.get("height")) == 0


@pytest.mark.parametrize(
    ("without", "panels"),
    [((), 5), (("layers",), 4), (("heads_per_group",), 4), (("hidden", "ffn", "kv_groups", "heads_per_group"), 1)],
)
def test_the_picture_has_a_panel_for_every_axis(tmp_path, without, panels):
    write_importance(tmp_path, without=without, method="<b>mine</b>")
    assert len(pictures(tmp_path)) == panels
    page = write_report(tmp_path).read_text()
    assert page.count("<figure>") == panels
    assert "&lt;b&gt;mine&lt;/b&gt;" in page
    width, height = Image.open(tmp_path / "importance_scores.png").size
    columns = min(2, panels)
    assert width == 960 * columns
    assert height == pytest.approx(160 * (4 * -(-panels // columns) + 0.4), abs=1)


def test_deep_networks_are_drawn_too(tmp_path):
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    axes = {"ffn": (300,), "kv_groups": (8,), "heads_per_group": (8, 4)}
    scores = {
        f"layers.{i}.{axis}": rng.random(shape, dtype=np.float32) for i in range(48) for axis, shape in axes.items()
    }
    save_file(scores | {"layers": rng.random(48, dtype=np.float32)}, tmp_path / IMPORTANCE_FILE)
    assert len(pictures(tmp_path)[1].findall("rect")) == 48 * 32
    write_report(tmp_path)


def test_losses_after_sorting_are_drawn_from_the_table(tmp_path):
    rows = [dict(zip(COLUMNS, ("none", "full", "a", 100, 1.0, 1.0, "", "0"), strict=True))]
    for method in ("none", "activation_block"):
        rows += [
            dict(zip(COLUMNS, (method, "subnetwork", "b", 10 * n, 0.1 * n, 9.0 / n, "", "0"), strict=True))
            for n in range(1, 8)
        ]
    with (tmp_path / "importance.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    picture = plot_sorting(tmp_path / "importance.csv")
    assert picture == tmp_path / "importance.png"
    assert Image.open(picture).size == (1760, 832)
