import csv
import html
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise

import pytest
import reporting_fixtures
from huggingface_hub import ModelCard
from omegaconf import OmegaConf
from PIL import Image
from reporting_fixtures import FULL, UNITS, make_run
from search_fixtures import joint_space

from nas_llm.architecture import Architecture, LayerChoice
from nas_llm.atomic_files import write_json, write_text
from nas_llm.metrics import add_metrics, read_metrics
from nas_llm.reporting import charts, front_table, numbers, write_model_card, write_report
from nas_llm.reporting.front_plot import staircase
from nas_llm.reporting.recipe import recipe
from nas_llm.reporting.run_files import RunFiles
from nas_llm.reporting.svg import Scale
from nas_llm.reporting.tables import shape_of
from nas_llm.search import RandomSearch, search_run_directory
from nas_llm.search_space import SearchSpace

IN_PLACE = "the in-place teacher (the largest network as it trains)"
LABELS = {"_target_": "nas_llm.distillation.labels.Labels"}
FILES = ("report.html", "pareto.csv", "pareto.png", "importance_scores.png")


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    run_dir = make_run(tmp_path_factory.mktemp("joint"))
    write_report(run_dir)
    return RunFiles(run_dir)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Per-layer shapes, three objectives, exports that the stock class cannot load."""
    run_dir = make_run(tmp_path_factory.mktemp("uneven"), per_layer=True, latency=True)
    write_report(run_dir)
    return RunFiles(run_dir)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (7, "7"),
        (999, "999"),
        (999.9, "1.00 k"),
        (2_131_456, "2.13 M"),
        (49_960, "50.0 k"),
        (7.24e9, "7.24 B"),
        (413_000, "413 k"),
    ],
)
def test_counts(number, text):
    assert numbers.count(number) == text


def test_numbers_as_people_read_them():
    assert numbers.percent(0.4968) == "49.7 %"
    assert [numbers.significant(x) for x in (0.5123, 12.349, 123.4, 12345.6)] == ["0.512", "12.35", "123.4", "12,346"]
    assert [numbers.significant(x) for x in (0, 0.0096, 0.00523, -0.00034)] == ["0", "0.010", "0.0052", "-0.00034"]
    assert [numbers.duration(x) for x in (7.31, 250, 7500)] == ["7.3 s", "4 min 10 s", "2 h 5 min"]
    assert [numbers.signed(x) for x in (0.1, -0.04)] == ["+0.100", "−0.040"]
    assert [numbers.tick(x) for x in (0.5, 20, 1.5e6, 1e6)] == ["0.5", "20", "1.5 M", "1 M"]
    assert numbers.value("latency", 3.2, "ms") == "3.200 ms"
    assert numbers.value("loss", None) == numbers.value("loss", float("inf")) == "not finite"


@pytest.mark.parametrize("logarithmic", [False, True])
@pytest.mark.parametrize(("low", "high"), [(0.42, 7.5), (1e5, 4e6), (3.0, 3.1), (2.0, 2.0)])
def test_ticks_are_round_and_inside(low, high, logarithmic):
    scale = Scale.around([low, high], 0, 100, logarithmic=logarithmic)
    ticks = scale.ticks()
    assert all(-1e-9 <= scale(tick) <= 100 + 1e-9 for tick in ticks)
    assert ticks == sorted(set(ticks))
    if not logarithmic:
        assert 2 <= len(ticks) <= 8
        assert len({round(b - a, 9) for a, b in pairwise(ticks)}) <= 1


def test_the_table_says_what_the_archive_says(joint):
    table = front_table(joint.path)
    lines = table.splitlines()
    assert lines[0] == f"Pareto front: {len(joint.search.front)} of 60 architectures"
    assert re.search(r"full network\s+4\.06 M\s+100\.0 %\s+0\.420", table)
    assert sum(line.startswith("*  ") for line in lines) == 3
    assert len({len(line) for line in lines[1:4]}) == 1
    for export in joint.exports:
        loss = joint.search.truncation[export.id].objectives["loss"]
        (line,) = [line for line in lines if export.id in line]
        assert f"{export.evaluation.objectives['loss']:.3f}" in line
        assert f"{loss:.3f}" in line
    assert f"more in {joint.path / 'pareto.csv'}" in table


def test_pareto_csv_holds_unrounded_values_and_shapes(joint):
    with (joint.path / "pareto.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    by_id = {e.id: e for e in joint.search.front}
    assert {row["id"] for row in rows} == set(by_id) | {joint.search.full.id}
    for row in rows:
        if row["role"] == "front":
            evaluation = by_id[row["id"]]
            assert float(row["loss"]) == evaluation.objectives["loss"]
            assert [int(i) for i in row["kept_layers"].split()] == [c.index for c in evaluation.architecture.layers]
            assert row["hidden"] == str(evaluation.architecture.hidden)
    params = [float(row["params"]) for row in rows]
    assert params == sorted(params, reverse=True)


def test_shapes_are_ranges_where_layers_differ(uneven):
    shape = shape_of(uneven.exports[1].evaluation.architecture)
    widths = [layer.ffn for layer in uneven.exports[1].evaluation.architecture.layers]
    assert shape["ffn"] == f"{min(widths)}-{max(widths)}"
    assert shape["head_dim"] == "16"


def test_the_picture_has_one_panel_for_each_cost(joint, uneven):
    one, two = (Image.open(run.path / "pareto.png").size for run in (joint, uneven))
    assert two[0] == 2 * one[0]
    assert two[1] == one[1]


def test_lines_connect_only_what_is_non_dominated_in_the_plane(uneven):
    search = uneven.search
    for cost in ("params", "latency"):
        line = staircase(search, cost, "loss")
        points = [(e.objectives[cost], e.objectives["loss"]) for e in search.front]
        best = [p for p in points if not any(q != p and q[0] <= p[0] and q[1] <= p[1] for q in points)]
        assert line == sorted(best)


def test_the_progress_of_every_search_is_drawn_beside_the_front(tmp_path):
    run_dir = make_run(tmp_path, evaluations=24, exports=False)
    facts = json.loads((run_dir / "search.json").read_text())
    one = (RunFiles(run_dir).search.progress, write_report(run_dir).read_text())
    alone = Image.open(run_dir / "search_progress.png").tobytes()
    facts["hypervolume"]["curves"]["random"] = [[1, 0.1], [10, 0.2 + facts["hypervolume"]["heuristic"]], [40, 1.02]]
    write_json(run_dir / "search.json", facts)
    two = (RunFiles(run_dir).search.progress, write_report(run_dir).read_text())
    assert [list(progress.curves) for progress, _ in (one, two)] == [["nsga2"], ["nsga2", "random"]]
    assert (one[0].evaluations, two[0].evaluations) == (24, 40)
    for progress, page in (one, two):
        low, high = progress.span()
        assert low < progress.heuristic < high
        chart = next(c for c in re.findall(r"<svg.*?</svg>", page, re.DOTALL) if "architectures asked for" in c)
        lines = ElementTree.fromstring(chart).findall("polyline")
        assert len([line for line in lines if line.get("class") == "heuristic"]) == 1
        assert len([line for line in lines if line.get("class").startswith("curve")]) == len(progress.curves)
        heights = [float(y) for line in lines for _, y in (p.split(",") for p in line.get("points").split())]
        assert all(0 <= y <= 420 for y in heights)
    assert "Random search 1.020" in two[1]
    assert Image.open(run_dir / "search_progress.png").tobytes() != alone


def test_a_run_from_before_there_was_a_hypervolume_still_has_a_report(tmp_path):
    run_dir = make_run(tmp_path, evaluations=24, exports=False)
    facts = json.loads((run_dir / "search.json").read_text())
    del facts["hypervolume"]
    write_json(run_dir / "search.json", facts)
    assert "hypervolume" not in write_report(run_dir).read_text()
    assert not (run_dir / "search_progress.png").exists()


class Page(HTMLParser):
    """Collects what a browser would fetch, the identifiers, and the texts."""

    VOID = ("meta", "br", "link", "img", "input")

    def __init__(self, text):
        super().__init__()
        self.fetched, self.ids, self.links, self.open, self.texts = [], set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.fetched += [found[key] for key in ("src", "srcset", "data", "poster") if key in found]
        self.fetched += [found["href"]] if tag == "link" else []
        self.links += [found["href"]] if tag == "a" else []
        self.ids |= {found["id"]} if "id" in found else set()
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.parametrize("run", ["joint", "uneven"])
def test_the_report_is_one_self_contained_well_formed_page(run, request):
    run = request.getfixturevalue(run)
    text = (run.path / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert page.fetched == []
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "url(" not in text
    assert "@import" not in text
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert {export.id for export in run.exports} <= page.ids
    assert "prefers-color-scheme: dark" in text
    for chart in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(chart)
    words = " ".join("".join(page.texts).split())
    for expected in (
        "The Pareto front",
        "The exported networks",
        "Importance scores",
        "Training the super-network",
        "NSGA-II",
        "A processor",
        "experiment=quickstart",
    ):
        assert expected in words
    assert all(e.id in words for e in run.search.front)


def test_what_users_wrote_is_escaped(joint):
    text = (joint.path / "report.html").read_text()
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_the_report_is_made_of_files_alone_and_again_the_same(joint, tmp_path):
    """By another process, without torch, pymoo or transformers."""
    before = {name: (joint.path / name).read_bytes() for name in FILES}
    code = (
        "import sys; from nas_llm.reporting import write_report; write_report(sys.argv[1]); "
        "heavy = {'torch', 'pymoo', 'transformers', 'lightning'} & sys.modules.keys(); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(joint.path)], check=True)
    assert {name: (joint.path / name).read_bytes() for name in before} == before


def test_a_run_without_search_logs_or_exports_still_has_a_report(tmp_path):
    write_json(tmp_path / "results.json", {"metrics": []})
    text = write_report(tmp_path).read_text()
    assert Page(text).open == []
    assert "The Pareto front" not in text
    assert not (tmp_path / "pareto.png").exists()
    assert front_table(tmp_path) == ""
    with pytest.raises(ValueError, match="is no directory"):
        write_report(tmp_path / "nowhere")


def test_curves_go_on_where_a_resumed_run_left(joint):
    curves = {curve.name: curve.points for curve in joint.curves}
    assert list(curves) == ["largest", "middle", "smallest", "training"]
    assert [step for step, _ in curves["middle"]] == list(range(0, 151, 10))
    assert curves["largest"][0][1] == pytest.approx(0.52)


def test_the_layer_chart_draws_every_layer_to_scale():
    full = FULL.largest()
    space = SearchSpace.joint(FULL).with_layer_order((5, 0, 4, 1, 2, 3))
    architecture = space.middle()
    chart = ElementTree.fromstring(charts.layers_chart(architecture, full))
    groups = chart.findall("g")
    assert len(groups) == 6
    assert [i for i, g in enumerate(groups) if g.get("class") == "dropped"] == [2, 3][: 6 - architecture.num_layers]
    kept = architecture.layers[0]
    (ffn,) = [r for r in groups[kept.index].findall("rect") if r.get("class") == "ffn"]
    outline = [r for r in groups[kept.index].findall("rect") if r.get("class") == "outline"][1]
    assert float(ffn.get("width")) / float(outline.get("width")) == pytest.approx(kept.ffn / 768, abs=0.01)


@pytest.mark.parametrize(("run", "stock"), [("joint", True), ("uneven", False)])
def test_the_model_card_says_how_to_load_it_and_what_it_measures(run, stock, request):
    run = request.getfixturevalue(run)
    export = run.exports[0]
    path = write_model_card(export.path, export.evaluation.architecture, run_dir=run.path)
    card = ModelCard.load(path)
    assert card.data.library_name == ("transformers" if stock else "nas_llm")
    assert card.data.pipeline_tag == "text-generation"
    assert {r.metric_type for r in card.data.eval_results} == {"loss"}
    assert ("AutoModelForCausalLM.from_pretrained(" in card.text) == stock
    assert ("model = nas_llm.from_pretrained(" in card.text) != stock
    assert ("cannot load this directory" in card.text) != stock
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", card.text, re.MULTILINE)
    assert [int(index) for index, _ in rows] == list(range(6))
    kept = {layer.index for layer in export.evaluation.architecture.layers}
    assert {int(index) for index, heads in rows if heads != "dropped"} == kept
    assert f"| loss | {export.evaluation.objectives['loss']:.3f} | nats/token | validation | 256 |" in card.text
    assert "sandwich sampler and forward KL distillation for 150 steps on stories.jsonl" in card.text


def test_the_model_card_of_a_network_that_was_never_measured(tmp_path, joint):
    folder = tmp_path / "out"
    write_json(folder / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    smallest = joint_space().smallest()
    text = write_model_card(folder, smallest, run_dir=joint.path).read_text()
    assert "Nothing has been measured" in text
    assert f"\n# quickstart: sub-network {smallest.id}\n" in text
    write_text(tmp_path / "run" / ".hydra" / "config.yaml", "name: supernet\nmodel: {path: /models/tiny-stories}\n")
    text = write_model_card(folder, smallest, run_dir=tmp_path / "run").read_text()
    assert f"\n# tiny-stories: sub-network {smallest.id}\n" in text


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"training.teacher": "in_place"},
            f"the sandwich sampler and forward KL distillation from {IN_PLACE}",
        ),
        (
            {"training.teacher": "frozen", "hidden_matching.distance": "mse"},
            "the sandwich sampler, forward KL distillation and MSE hidden matching from a frozen teacher "
            "(the network as it was before training)",
        ),
        (
            {"training.teacher": "in_place", "hidden_matching.distance": "cosine", "distillation": LABELS},
            f"the sandwich sampler and cosine hidden matching from {IN_PLACE}",
        ),
        ({"training.teacher": "in_place", "distillation": LABELS}, "the sandwich sampler"),
    ],
)
def test_the_recipe_names_the_teacher_and_the_hidden_matching_that_the_run_had(tmp_path, settings, sentence):
    config = OmegaConf.create(reporting_fixtures.CONFIGURATION)
    for key, value in settings.items():
        OmegaConf.update(config, key, value, merge=False)
    write_text(tmp_path / ".hydra" / "config.yaml", OmegaConf.to_yaml(config))
    assert recipe(RunFiles(tmp_path))[-1] == (
        f"It was trained as a super-network with {sentence} for 150 steps on stories.jsonl."
    )


def test_the_recipe_says_what_became_of_the_weights_and_that_adapters_alone_were_trained(tmp_path):
    config = OmegaConf.create(reporting_fixtures.CONFIGURATION)
    chosen = {
        "sparsity": {"_target_": "nas_llm.sparsity.wanda.Wanda", "sparsity": 0.5, "pattern": None},
        "quantization": {"_target_": "nas_llm.quantization.gptq.GPTQ", "bits": 4},
        "peft": {"_target_": "nas_llm.peft.qa_sparse_lora.QaSparseLora", "r": 8, "lora_alpha": 16.0, "use_dora": False},
    }
    for key, node in chosen.items():
        OmegaConf.update(config, key, node)
    write_text(tmp_path / ".hydra" / "config.yaml", OmegaConf.to_yaml(config))
    assert RunFiles(tmp_path).untrained == "the sparse and quantised, untrained network"
    *_, sparse, quantised, adapters, trained = recipe(RunFiles(tmp_path))
    assert sparse == "Its linear layers were made sparse by Wanda: 50.0 % of the weights are zero."
    assert quantised == "Its linear layers were quantised to 4 bits by GPTQ."
    assert adapters.startswith("Low-rank adapters (QA-SparsePEFT) of rank 8 and alpha 16 were put beside its weights")
    assert trained.startswith("The adapters alone were trained as a super-network with")
    OmegaConf.update(config, "trainer.max_steps", 0)
    write_text(tmp_path / ".hydra" / "config.yaml", OmegaConf.to_yaml(config))
    assert recipe(RunFiles(tmp_path))[-1] == "It was not trained."


def test_the_card_says_which_ranks_a_network_has(tmp_path):
    run_dir = make_run(tmp_path / "run", exports=False)
    write_json(tmp_path / "out" / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    ranks = [(("attention_in", 4), ("ffn_in", 8)), (("attention_in", 2), ("ffn_in", 2))]
    full = Architecture(
        16,
        tuple(LayerChoice(i, 1, 1, 16, 32, (("attention_in", 8), ("ffn_in", 8))) for i in range(2)),
        (("lm_head", 8),),
    )
    small = Architecture(16, tuple(LayerChoice(i, 1, 1, 16, 32, r) for i, r in enumerate(ranks)), (("lm_head", 4),))
    write_model_card(tmp_path / "out", small, run_dir=run_dir, full=full)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| 0 | 1 | 1 | 16 | 32 | attention_in 4 of 8, ffn_in 8 |" in card
    assert "| 1 | 1 | 1 | 16 | 32 | all 2 of 8 |" in card
    assert "outside of the layers: lm_head 4 of 8." in card
    write_model_card(tmp_path / "out", small.without_ranks, run_dir=run_dir, full=full.without_ranks)
    assert "rank" not in (tmp_path / "out" / "README.md").read_text().partition("## How it is built")[2]


def test_one_of_a_thing_is_no_plural(tmp_path, joint):
    run_dir = make_run(tmp_path / "run", evaluations=1, exports=False)
    config = (run_dir / ".hydra" / "config.yaml").read_text().replace("max_steps: 150", "max_steps: 1")
    write_text(run_dir / ".hydra" / "config.yaml", config)
    facts = json.loads((run_dir / "search.json").read_text())
    write_json(run_dir / "search.json", {**facts, "samples": 1})
    add_metrics(run_dir, [{**m, "samples": 1} for m in read_metrics(run_dir) if "samples" in m])
    one = Architecture(16, (LayerChoice(0, 1, 1, 16, 32),))
    write_json(tmp_path / "out" / "config.json", {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    card = write_model_card(tmp_path / "out", one, run_dir=run_dir).read_text()
    whole = write_model_card(tmp_path / "out", one, run_dir=run_dir, full=one).read_text()
    assert "Residual width 16 of 256, 1 of 6 layers. Layers" in card
    assert "Residual width 16, 1 layer. Layers" in whole
    assert "for 1 step on" in card
    assert "compared 1 sub-network by" in card
    assert "in 1 group, " in one.summary()
    for text in (card, whole, one.summary(), write_report(run_dir).read_text()):
        assert not re.search(
            r"(?<!of )(?<![\d.,])1 (layers|steps|sub-networks|records|groups|samples|architectures)\b", text
        )


@pytest.mark.parametrize("run", ["joint", "uneven"])
def test_snippets_say_where_their_path_starts(run, request):
    run = request.getfixturevalue(run)
    export = run.exports[0]
    card = write_model_card(export.path, export.evaluation.architecture, run_dir=run.path).read_text()
    for text, place in (
        (card, "the folder that holds this directory"),
        (html.unescape((run.path / "report.html").read_text()), "the run's directory"),
    ):
        found = re.search(r'"([\w/]+)"\)?  # from ' + place, text)
        start = run.path if place == "the run's directory" else export.path.parent
        assert (start / found[1] / "config.json").exists()


def test_exports_of_a_search_by_other_objectives_stay_in_the_report(tmp_path, monkeypatch):
    """The second search has not measured the latency of all that the first one had exported."""
    whole = reporting_fixtures.measure
    without = {"params", "loss"}
    monkeypatch.setattr(reporting_fixtures, "measure", lambda a, known=None: {n: whole(a)[n] for n in without})
    run_dir = make_run(tmp_path, evaluations=40)
    search = RandomSearch(SearchSpace.joint(FULL), {"params": "min", "latency": "min"}, evaluations=5)
    settings = {"units": UNITS, "full": FULL.largest(), "split": "validation", "samples": 256, "step": 150}
    search_run_directory(run_dir, search, whole, progress=False, **settings)
    exports = RunFiles(run_dir).exports
    assert not all("latency" in export.evaluation.objectives for export in exports)
    assert {export.id for export in exports} <= Page(write_report(run_dir).read_text()).ids
    search_run_directory(run_dir, search, whole, progress=False, **{**settings, "step": 160})
    assert {export.evaluation.step for export in RunFiles(run_dir).exports} <= {160}


def test_a_damaged_run_is_named(tmp_path):
    run_dir = make_run(tmp_path, evaluations=24, exports=False)
    facts = json.loads((run_dir / "search.json").read_text())
    write_json(run_dir / "search.json", {**facts, "full": "0" * 12})
    with pytest.raises(ValueError, match="lacks the full network 000000000000"):
        write_report(run_dir)
