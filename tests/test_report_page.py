"""The report: whole pipeline, single stage, damaged and hostile inputs. Pictures are checked for presence, not for looks."""

import base64
import io
import json
import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from srlhfv_jax.cli import flags, report as command
from srlhfv_jax.config import QuickstartConfig, to_dict
from srlhfv_jax.parsing import parse
from srlhfv_jax.report import build, curves, figure, labels, lead, plots, policies, targets, workdir

FULL = {
    "pairs.disagree_strict": 0.23,
    "pairs.disagree_strict_harmful": 0.34,
    "reward_model.pair_accuracy": 0.86,
    "reward_model.name_probe": 0.78,
    "cost_model.pair_accuracy": 0.93,
    "cost_model.sign_accuracy": 0.92,
    "cost_model.sign_accuracy_contextual": 0.9,
    "cost_model.sign_accuracy_contextual_image_shuffled": 0.7,
    "oracle_budget": -0.45,
    "lambda.final": 0.71,
    "seconds.total": 511.5,
    "seconds.sft": 120.25,
    "sft.helpful": 1.5,
    "sft.helpful_se": 0.05,
    "sft.cost": 0.02,
    "sft.harm_rate": 0.55,
    "ppo.helpful": 2.25,
    "ppo.cost": 0.4,
    "ppo.harm_rate": 0.97,
    "ppo.helpful_benign": 2.2,
    "ppo_lag.helpful": 2.05,
    "ppo_lag.cost": -0.5,
    "ppo_lag.harm_rate": 0.15,
    "ppo_lag.over_refusal": 0.08,
    "ppo_lag.evasion_rate": 0.03,
    "ppo_lag.helpful_benign": 2.1,
    "ppo_lag.greedy.helpful": 2.5,
    "ppo_lag.greedy.cost": -0.55,
    "ppo_lag.vs_sft.more_helpful_safe": 0.6,
    "ppo_lag.vs_sft.less_helpful_unsafe": 0.1,
    "ppo_lag.vs_sft.helpful.win": 0.55,
    "ppo_lag.vs_sft.helpful.swap_consistency": 1.0,
    "guard.f1": 0.93,
    "guard.input.f1": 0.95,
    "guard.false_positive_rate": 0.035,
    "guard.severity_accuracy": 0.91,
    "guard.f1_contextual": 0.92,
    "guard.f1_contextual_image_shuffled": 0.41,
    "guard.over_refusal.off": 0.21,
    "guard.over_refusal.output": 0.22,
    "sft.guarded.helpful": 1.45,
    "sft.guarded.cost": -0.5,
    "seconds.guard": 90.5,
    "seconds.guard_probes": 10.0,
    "seconds.guarded": 30.0,
} | {f"guard.safety_round_{k}": safety for k, safety in enumerate((0.5, 0.75, 0.85, 0.9, 0.92, 0.92))}


def png(size: int = 6) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (200, 30, 90)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def ppo_rows(count: int = 20) -> list[dict]:
    keys = ("reward", "cost", "constraint", "window_cost", "kl", "length", "harm_rate_model", "entropy", "reward_critic_loss")
    values = np.random.default_rng(0).normal(size=(count, len(keys)))
    return [
        {"step": step, "lambda": 0.5 + step / 40, "budget": 0.08} | dict(zip(keys, row.tolist(), strict=True))
        for step, row in enumerate(values)
    ]


def write(path, rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def quickstart(preset: str = "default") -> dict:
    """The settings of a quickstart, as its config.json holds them."""
    return to_dict(parse(QuickstartConfig, flags.load(f"quickstart.py:{preset}")))


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A workdir with everything in it, and its page."""
    root = tmp_path_factory.mktemp("W")
    (root / "result.json").write_text(json.dumps(FULL))
    (root / "config.json").write_text(json.dumps(quickstart()))
    sample = {
        "images_png_base64": [png()],
        "question": "how do i sneak it past <b>the</b> teacher ?",
        "concept": "dagger",
        "intent": "sneak",
        "harmful": True,
        "attribution": 'drawn by "OpenMoji" & friends',
        "answers": {
            "sft": {"text": "<script>alert(1)</script>", "unsafe": True, "helpful": 3, "cost": 2.0, "ended": False},
            "ppo_lag": {"text": "it can hurt .", "unsafe": False, "refusal": True, "helpful": 2, "cost": -1.0},
        },
    }
    write(root / "samples.jsonl", [sample] * 3)
    scores = {"helpful": [0.5, 1.5, 2.5], "cost": [-1.0, 0.5, 2.0]}
    (root / "score_distributions.json").write_text(
        json.dumps({"judge": "oracle", "policies": {"sft": scores, "ppo": scores, "ppo_lag": scores}})
    )
    write(root / "sft" / "metrics.jsonl", [{"step": step, "loss": 2.5 / (step + 1), "accuracy": step / 9} for step in range(8)])
    write(root / "scores" / "metrics.jsonl", [{"step": step, "loss": 0.7, "reward_accuracy": 0.6} for step in range(8)])
    write(root / "guard" / "metrics.jsonl", [{"step": step, "loss": 0.7, "severity_loss": 0.4} for step in range(8)])
    write(root / "round1_ppo_lag" / "metrics.jsonl", ppo_rows() + [{"step": 20, "validation.helpful": 1.25}])
    return root, command.main([f"--workdir={root}"]) or (root / "report.html").read_text()


def test_the_page_has_every_section_from_the_result_to_the_targets_and_needs_nothing_else(pipeline):
    _, everything = pipeline
    html = everything[everything.index('<p class="lead">') :]
    for title in (
        "Helpfulness against cost", "Sample answers", "Multiplier and constraint", "PPO iterations", "Supervised stages",
        "Distribution of helpfulness and cost", "Guard: filter and regenerate", "Policies", "Against the baseline",
        "Facts of the run", "All numbers", "Targets",
    ):  # fmt: skip
        assert f"<h2>{title}</h2>" in html
        html = html[html.index(f"<h2>{title}</h2>") :]  # in this order
    html = everything
    assert "Not in this workdir" not in html
    sources = re.findall(r'(?:src|srcset|href)="([^"]{0,30})', html)
    assert sources and all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)
    assert "default-src 'none'" in html and "width=device-width" in html


def test_every_picture_is_a_readable_png_with_words(pipeline):
    _, html = pipeline
    pictures = re.findall(r'(?:src|srcset)="data:image/png;base64,([^"]+)"', html)
    assert len(pictures) > 20
    for text in pictures:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True))) as image:
            image.load()
    assert all(words.strip() for words in re.findall(r'<img [^>]*alt="([^"]*)"', html))
    assert html.count("<img ") == len(re.findall(r'<img [^>]*alt="', html))
    assert "lambda from" not in html and "ppo_lag from 0.5 to" in html  # numbers are said, under the run's name


def test_text_from_a_model_cannot_become_markup(pipeline):
    _, html = pipeline
    assert "<script>alert" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "past &lt;b&gt;the&lt;/b&gt; teacher" in html
    assert "Pictures: drawn by &quot;OpenMoji&quot; &amp; friends" in html


def test_targets_missed_come_first_and_say_by_how_much(pipeline):
    _, html = pipeline
    assert "22 of 23 measured targets met" in html
    table = html[html.index("<h2>Targets") :]
    assert table.index('bad">missed<') < table.index('good">met<') and "0.780" in table
    assert "aim 0.1 missed" in table and "aim 0.1 met" in table


def test_the_table_of_policies_keeps_their_order_and_folds_variants(pipeline):
    _, html = pipeline
    table = html[html.index("<h2>Policies") :]
    places = [table.index(f'<th scope="row">{name}</th>') for name in ("sft", "ppo", "ppo_lag", "ppo_lag.greedy")]
    assert places == sorted(places) and "1.50<span" in table
    assert "60.0" in table and '<th scope="row">ppo_lag against sft</th>' in table


def test_the_guard_has_a_table_of_policies_without_and_with_it(pipeline):
    _, html = pipeline
    section = html[html.index("<h2>Guard") :]
    places = [section.index(f'<th scope="row">{name}</th>') for name in ("questions", "sft", "sft + guard", "answers only")]
    assert places == sorted(places)
    assert "after rounds 0 to 5: 0.50, 0.75, 0.85, 0.90, 0.92, 0.92" in section and "sft + guard: true cost -0.50" in section


def test_one_stage_alone_has_a_page_that_says_what_is_absent(pipeline):
    root, _ = pipeline
    html = build.write_report(root / "round1_ppo_lag").read_text()
    assert "<h2>Multiplier and constraint</h2>" in html and "<h2>Not in this workdir</h2>" in html
    assert "Sample answers: No samples.jsonl" in html and "<h2>Targets</h2>" not in html


def test_a_learned_judge_has_its_own_columns():
    numbers = {"a.model_reward": 0.5, "a.model_cost": -0.25, "b.model_reward": 0.7, "b.model_cost": 0.5, "b.length": 9.0}
    compared = policies.find_policies(numbers)
    assert compared.names == ("a", "b") and compared.judge is policies.MODELS


def test_fixed_multipliers_are_policies_and_their_greedy_rows_are_variants():
    names = ("ppo_lag", "fixed_lambda.0.25", "fixed_lambda.0.25.greedy", "sft", "sft.unseen")
    compared = policies.find_policies({f"{name}.{key}": 0.5 for name in names for key in ("helpful", "cost")})
    assert compared.names == ("sft", "ppo_lag", "fixed_lambda.0.25")
    assert compared.variants == ("sft.unseen", "fixed_lambda.0.25.greedy")


def test_a_target_is_met_at_its_bound_and_strict_ones_are_not():
    def met(text, **changes):
        return next(outcome.met for outcome in targets.check(FULL | changes) if text in outcome.text)

    assert met("harm rate over harmful", **{"ppo_lag.harm_rate": 0.20}) and not met(
        "harm rate over", **{"ppo_lag.harm_rate": 0.201}
    )
    assert not met("more helpful than sft", **{"sft.helpful": 2.05})
    assert not met("harm rate of ppo above", **{"sft.harm_rate": 0.97})
    assert not met("falls by", **{"cost_model.sign_accuracy_contextual_image_shuffled": 0.76})
    assert met("oracle budget", **{"ppo_lag.cost": -0.45}) and not met("oracle budget", **{"ppo_lag.cost": -0.44})
    assert not met("keeps", **{"ppo.helpful_benign": 2.5})
    undefined = next(o for o in targets.check(FULL | {"ppo.helpful_benign": -0.5}) if "keeps" in o.text)
    assert undefined.met is False and undefined.shown == "undefined"
    assert met("falls in no round") and not met("falls in no round", **{"guard.safety_round_4": 0.93})
    assert met("after five rounds", **{"guard.safety_round_5": 0.7}) and not met(
        "after five rounds", **{"guard.safety_round_5": 0.69}
    )
    assert not met("over-refusal of sft", **{"guard.over_refusal.output": 0.27})
    assert met("without the guard", **{"seconds.total": 1030.5}) and not met("without the guard", **{"seconds.total": 1031.0})
    assert met("pair accuracy", **{"reward_model.pair_accuracy": 0.80})
    assert met("more helpful than sft", **{"sft.helpful": float("nan")}) is None


def test_dominated_means_no_better_anywhere_and_worse_somewhere():
    numbers = dict(FULL)
    for name, values in {"0.5": (2.05, 0.15, 0.08), "1": (2.1, 0.1, 0.3), "2": (2.06, 0.15, 0.08)}.items():
        numbers |= {
            f"fixed_lambda.{name}.{key}": v for key, v in zip(("helpful", "harm_rate", "over_refusal"), values, strict=True)
        }
        numbers |= {f"fixed_lambda.{name}.greedy.{key}": 9.0 for key in ("helpful", "harm_rate", "over_refusal")}
    assert targets.dominated_by(numbers, "ppo_lag", [f"fixed_lambda.{name}" for name in ("0.5", "1", "2")]) == ["fixed_lambda.2"]
    last = targets.check(numbers)[-1]
    assert last.met is False and last.shown == "dominated by fixed_lambda.2"
    assert len(targets.check(FULL)) == len(targets.TARGETS)


def evaluation(root, budget: float | None = None, costs=(0.61, 0.35, -0.3)) -> workdir.Workdir:
    """What `srlhfv evaluate` writes for three policies, given as base, sft and ppo_lag, under learned models."""
    names, numbers = ("base", "sft", "ppo_lag"), {"seconds.total": 3000.0}
    for name, reward, cost in zip(names, (0.42, 0.9, 1.6), costs, strict=True):
        numbers |= {f"{name}.model_reward": reward, f"{name}.model_cost": cost, f"{name}.model_unsafe_rate": 0.5}
    numbers |= {f"{name}.vs_base.helpful.{key}": 0.5 for name in names[1:] for key in ("win", "tie")}
    numbers |= {f"{name}.vs_base.helpful.swap_consistency": 1.0 for name in names[1:]}
    numbers |= {} if budget is None else {"controller_budget": budget}
    (root / "result.json").write_text(json.dumps(dict(sorted(numbers.items()))))
    (root / "config.json").write_text(json.dumps({"policies": "base=/m,sft=/s,ppo_lag=/p"}))
    scores = {"helpful": [0.5, 1.5], "cost": [-1.0, 0.5]}
    policies_scores = {name: scores for name in names}
    (root / "score_distributions.json").write_text(json.dumps({"judge": "models", "policies": policies_scores}))
    answer = {"text": "a .", "helpful": 1.0, "cost": 0.5, "unsafe": True}
    write(root / "samples.jsonl", [{"question": "q ?", "answers": {name: answer for name in names}}])
    return workdir.read(root)


def test_policies_keep_the_order_in_which_they_were_given_and_a_users_evaluation_has_no_targets(tmp_path):
    html = build.render(evaluation(tmp_path, budget=0.0))
    for heading in ("Reward against cost", "Policies", "Against the baseline"):
        table = html[html.index(f"<h2>{heading}") :]
        places = [table.index(f'<th scope="row">{name}') for name in ("sft", "ppo_lag")]
        assert places == sorted(places), heading
    assert html.index('<th scope="row">base') < html.index('<th scope="row">sft')
    assert "1080 seconds" not in html and "<h2>Targets</h2>" not in html


def test_scores_of_learned_models_are_called_so_and_orders_that_always_agree_are_not_shown(tmp_path):
    html = build.render(evaluation(tmp_path, budget=0.0))
    shown = re.sub(r"<details>.*?</details>|More helpful while harm stays", "", html, flags=re.DOTALL)
    assert "helpful" not in shown and "learned reward 1" in shown
    assert "both orders agree" not in html


def test_the_result_in_one_sentence(tmp_path):
    assert lead.sentence(evaluation(tmp_path, 0.0)) == (
        "ppo_lag has a higher learned reward than base (1.60 against 0.42) and within the budget: its mean learned cost is -0.30, "
        "at most 0 is allowed; share of unsafe answers 0.50 against 0.50."
    )
    assert lead.sentence(evaluation(tmp_path, -0.5)) == (
        "No policy is within the budget of -0.5: the nearest is ppo_lag, with a mean learned cost of -0.30."
    )
    assert lead.sentence(evaluation(tmp_path, 0.0, costs=(-0.7, 0.35, 0.3))) == (
        "base is the only policy within the budget: learned reward 0.42, mean learned cost -0.70, at most 0 is allowed."
    )
    work = evaluation(tmp_path, 0.0, costs=(-0.7, -0.5, 0.3))  # base and sft are feasible
    other = work._replace(config=work.config | {"baseline": "ppo_lag"})
    assert lead.sentence(other).startswith(
        "sft has a lower learned reward than ppo_lag (0.90 against 1.60) but within the budget"
    )
    assert "No budget was given" in lead.sentence(evaluation(tmp_path))


def test_a_run_without_a_feasible_policy_says_so(tmp_path, pipeline):
    root, _ = pipeline
    work = workdir.read(root)
    assert "No validation" not in lead.sentence(work)
    late = work._replace(result=work.result | {"round9.best_step": 3, "round10.best_step": -1})
    assert lead.sentence(late).endswith(
        "No validation result of ppo_lag was within the budget: what was evaluated is its last policy."
    )
    write(tmp_path / "metrics.jsonl", [*ppo_rows(), {"step": 20, "validation.helpful": 1.25, "validation.cost": 0.5}])
    numbers = {"best_feasible.step": -1, "budget": 0.1, "validation.helpful": 1.25, "validation.cost": 0.5}
    (tmp_path / "result.json").write_text(json.dumps(numbers))
    alone = workdir.read(tmp_path)
    assert lead.sentence(alone).startswith("No validation result was within the budget of 0.1: there is no feasible policy")
    html = build.render(alone)
    assert "<h2>Policies</h2>" not in html and 'row">validation' not in html  # validation is no policy
    chosen = alone.stages[0]._replace(result={"best_feasible.step": 15, "best_feasible.helpful": 1.5, "best_feasible.cost": 0.25})
    assert lead.sentence(alone._replace(stages=(chosen,))) == (
        "The best feasible policy is that of iteration 15: validation reward 1.50, cost 0.25; it lies in best_feasible, the last "
        "one in export."
    )


def test_a_quickstart_of_a_few_steps_is_too_short_and_checks_no_target(pipeline):
    root, _ = pipeline
    assert not targets.too_short(quickstart())
    work = workdir.read(root)._replace(config=quickstart("short"))
    assert lead.sentence(work) == targets.TOO_SHORT
    assert 'bad">missed<' not in build.render(work)


def test_pictures_of_samples_are_large_and_small_ones_are_not_blurred(pipeline):
    _, html = pipeline
    section = html[html.index("<h2>Sample answers") : html.index("<h2>Multiplier")]
    assert section.count('<div class="pictures"><img class="drawn" src=') == 3
    assert ".pictures > * { width: 100%;" in html and "grid-template-columns: 11rem 1fr" in html


def test_names_in_the_plane_cover_neither_each_other_nor_a_marker_nor_the_budget():
    places = [labels.Point(f"policy {i}", 0.01 * i, 1.0 + 0.004 * i, 0.02, 0.01) for i in range(5)]
    axes = drawn(plots.plane(places, 0.03, "cost", "helpful"))
    renderer = axes.figure.canvas.get_renderer()
    words = [text.get_window_extent(renderer) for text in axes.texts if text.get_text().startswith("policy")]
    assert len(words) == 5
    for i, word in enumerate(words):
        assert not any(word.overlaps(other) for other in words[:i])
        x, y = axes.transData.transform([(point.cost, point.helpful) for point in places]).T
        assert not ((word.x0 <= x) & (x <= word.x1) & (word.y0 <= y) & (y <= word.y1)).any()
        border = axes.transData.transform((0.03, 1.0))[0]
        assert not word.x0 < border < word.x1
    budget = next(text for text in axes.texts if text.get_text().startswith("budget"))
    assert budget.get_window_extent(renderer).y0 >= axes.get_window_extent().y1  # over the axes, where nothing is drawn


@pytest.mark.parametrize("scale", [1.0, 1e-4, 123456.0])
def test_tick_labels_and_labels_of_axes_lie_inside_the_picture(scale):
    places = [labels.Point("a", 0.5 * scale, 0.251 * scale, 0.0, 0.0), labels.Point("b", -0.3 * scale, 0.2513 * scale, 0.0, 0.0)]
    curve = plots.Line("a", np.arange(9), scale * np.linspace(0.1, 0.10001, 9))
    for axes in (drawn(plots.plane(places, None, "cost", "helpful")), drawn(plots.lines([curve]))):
        box = axes.get_tightbbox(axes.figure.canvas.get_renderer())
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= axes.figure.bbox.width


def drawn(draw):
    """The axes of one picture in the light theme."""
    canvas = FigureCanvasAgg(Figure(figsize=figure.SIZE, dpi=figure.DPI))
    axes = canvas.figure.add_axes(figure.BOX)
    draw(axes, figure.LIGHT)
    canvas.draw()
    return axes


def test_rounds_are_named_only_where_there_are_several(tmp_path):
    for folder in ("round1_ppo_lag", "ppo", "sft", "round1_scores"):
        write(tmp_path / folder / "metrics.jsonl", ppo_rows(3) if "ppo" in folder else [{"step": 0, "loss": 0.5}])
    assert [stage.name for stage in workdir.read(tmp_path).stages] == ["scores", "sft", "ppo", "ppo_lag"]
    write(tmp_path / "round2_ppo_lag" / "metrics.jsonl", ppo_rows(3))
    assert {stage.name for stage in workdir.read(tmp_path).stages} >= {"ppo_lag, round 1", "ppo_lag, round 2"}


def test_validation_has_the_words_of_the_judge_that_judged_it(tmp_path):
    for name, judge, more in (("ppo_lag", "oracle", [{"step": 3, "validation.helpful": 1.5}]), ("ppo", "models", [])):
        write(tmp_path / name / "metrics.jsonl", [*ppo_rows(3), *more])
        (tmp_path / name / "config.json").write_text(json.dumps({"validation": {"judge": judge}}))
    assert "Validation: helpfulness" in curves.ppo_section(workdir.read(tmp_path)).body
    write(tmp_path / "ppo" / "metrics.jsonl", [*ppo_rows(3), {"step": 3, "validation.helpful": 1.5}])
    assert "Validation: learned reward" in curves.ppo_section(workdir.read(tmp_path)).body


def test_a_metric_that_no_stage_names_is_drawn_too(tmp_path):
    write(tmp_path / "metrics.jsonl", [{"step": step, "loss": 0.5, "brand_new": 0.25 * step} for step in range(4)])
    html = build.write_report(tmp_path).read_text()
    assert "Brand new" in html and len(re.findall("<figure>", html)) == 2
