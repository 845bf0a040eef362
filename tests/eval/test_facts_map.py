"""The map's comparisons, by numbers to check with a pencil, its figures and its cells."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmrlhf import scenes
from mmrlhf.config import ScenesConfig
from mmrlhf.demo import data
from mmrlhf.facts import render_facts
from mmrlhf.records import InputError, Message, Preference

STUDIES = Path(__file__).parents[2] / "eval" / "studies"


@pytest.fixture
def curves(load_study):
    return load_study("facts_map_curves")


def make_run(curves, kl, f1, selection=None, cell="rm-0-none", seed=4, utility=None, kl_coef=0.03):
    """Return a run with an evaluation every 8 steps, whose other metrics equal its F1."""
    f1 = np.array(f1, dtype=float)
    names = ("claim_f1", "utility", "coverage", "chair_s", "perception_errors", "cooccurrence_errors", "mean_length")
    metrics = {f"held_out_{name}": f1 for name in names}
    metrics["held_out_utility"] = np.array(f1 if utility is None else utility, dtype=float)
    metrics["selection_claim_f1"] = np.array(f1 if selection is None else selection, dtype=float)
    steps = 8 * np.arange(len(f1))
    samples = {
        "step": np.arange(1, steps[-1] + 1),
        "kl": (0.1 * np.arange(steps[-1])) ** 2,
        "score": np.linspace(0, 1, steps[-1]),
        **{f"false_{kind}": 1 - 0.01 * (number + 1) * np.arange(steps[-1]) for number, kind in enumerate(scenes.CLAIM_KINDS)},
    }
    return curves.Run(seed, cell, kl_coef, steps, np.array(kl, dtype=float), metrics, samples, True)


# ---- curves --------------------------------------------------------------------------------------


def test_a_value_at_a_kl_is_interpolated_in_its_root(curves):
    run = make_run(curves, kl=[0, 1, 4], f1=[0.8, 0.9, 0.7])
    assert curves.value_at_kl(run, "held_out_claim_f1", 0.25) == pytest.approx(0.85)  # root .5, half way to 1
    assert curves.value_at_kl(run, "held_out_claim_f1", 2.25) == pytest.approx(0.8)  # root 1.5, half way to 2
    assert np.isnan(curves.value_at_kl(run, "held_out_claim_f1", 4.5))
    later = make_run(curves, kl=[1, 4], f1=[0.9, 0.7])
    assert np.isnan(curves.value_at_kl(later, "held_out_claim_f1", 0.99))
    assert curves.value_at_kl(later, "held_out_claim_f1", 1) == 0.9


def test_evaluations_are_in_the_order_of_their_kl_and_equal_kls_are_averaged(curves):
    run = make_run(curves, kl=[0, 4, 1, 1], f1=[0.8, 0.6, 0.9, 0.7])
    roots, values = curves.along_kl(run, "held_out_claim_f1")
    assert roots.tolist() == [0, 1, 2]
    assert values == pytest.approx([0.8, 0.8, 0.6])


def test_arms_at_the_same_kl(curves):
    a = make_run(curves, kl=[0, 1], f1=[0.8, 1.0])
    b = make_run(curves, kl=[0, 4], f1=[0.8, 0.4])  # at KL 1, half way in the root: .6
    by_way = curves.at_same_kl(a, b, "held_out_claim_f1")
    assert by_way["largest common KL"] == pytest.approx(0.4)
    assert by_way["mean to it"] == pytest.approx(0.2)  # a triangle from 0 to .4
    assert by_way["KL 1"] == pytest.approx(0.4)
    assert by_way["KL 0.5"] == pytest.approx(0.4 * np.sqrt(0.5))
    assert np.isnan(by_way["KL 2"])  # a does not get there
    assert curves.at_same_kl(b, a, "held_out_claim_f1")["largest common KL"] == pytest.approx(-0.4)


def test_arms_after_the_same_steps_and_at_their_best_checkpoints(curves):
    a = make_run(curves, kl=[0, 1, 2], f1=[0.8, 0.9, 0.5], selection=[0.7, 0.9, 0.8])
    b = make_run(curves, kl=[0, 3], f1=[0.8, 0.6], selection=[0.7, 0.7])
    assert curves.after_same_steps(a, b, "held_out_claim_f1") == pytest.approx(0.3)  # step 8 is the last of both
    assert (a.best, b.best) == (1, 0)  # of equals, the earliest: SFT
    assert curves.at_best_checkpoints(a, b, "held_out_claim_f1") == pytest.approx(0.1)


def test_the_kl_after_a_step_is_that_of_the_next_step_on_a_line(curves):
    sampled, at = 0.1 * np.arange(20), np.arange(1, 21)  # step t logs 0.1 (t - 1), the KL that t - 1 steps made
    assert curves.kl_after_steps(sampled, at, [0, 8, 20]) == pytest.approx([0, 0.8, 2.0])
    noisy = sampled + np.where(np.arange(20) == 8, 0.7, 0)  # step 9 is 0.7 too high, one of seven on the line
    assert curves.kl_after_steps(noisy, at, [8]) == pytest.approx([0.9])
    assert curves.kl_after_steps(-sampled, at, [8]) == pytest.approx([0])  # an estimate can be negative, a KL cannot
    was_run = at % 3 > 0  # every third step is skipped, and logs nothing
    assert curves.kl_after_steps(sampled[was_run], at[was_run], [0, 8, 20]) == pytest.approx([0, 0.8, 2.0])


def test_runs_are_read_without_the_steps_that_were_skipped(curves, tmp_path):
    directory = tmp_path / "none-4" / "ppo_rm-0-none_kl0.03"
    directory.mkdir(parents=True)
    rows = [
        {"step": t} | ({} if t in (0, 3) else {"objective/kl": 0.1 * (t - 1), "objective/scores": float(t)}) for t in range(9)
    ]
    for row in rows[::8]:
        row["eval/selection_claim_f1"] = 0.5
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = [{"step": t, "id": "rl-000003", "answer": "A star."} for t in range(1, 10) if t != 3]  # 9 is not logged yet
    (directory / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    (run,) = curves.load_runs(tmp_path, {4: ScenesConfig(seed=4)})
    assert run.samples["step"].tolist() == [1, 2, 4, 5, 6, 7, 8] and run.samples["utility"].shape == (7,)
    assert run.kl == pytest.approx([0, 0.8])
    assert run.evaluation_rows() == [
        {"step": 0, "kl": 0.0, "selection_claim_f1": 0.5}, {"step": 8, "kl": 0.8, "selection_claim_f1": 0.5},
    ]  # fmt: skip


def test_first_slope_is_the_change_along_the_root_of_kl(curves):
    run = make_run(curves, kl=[0, 1, 2, 3, 4], f1=[0.8] * 5)  # false objects fall by 0.01, the root rises by 0.1 a step
    assert curves.first_slope(run, "false_object") == pytest.approx(-0.1)


def test_the_kl_coefficient_of_a_cell_is_chosen_by_the_selection_split(curves):
    weak = [make_run(curves, [0, 1], [0.9, 0.9], [0.7, 0.8], seed=s, kl_coef=0.03) for s in (4, 5)]
    strong = [make_run(curves, [0, 1], [0.5, 0.5], [0.7, 0.9], seed=s, kl_coef=0.1) for s in (4, 5)]
    lonely = make_run(curves, [0, 1], [0.5, 0.5], [0.99, 0.99], seed=6, kl_coef=0.03)  # a seed without the other coefficient
    chosen = curves.tuned_runs([*weak, *strong, lonely])["rm-0-none"]
    assert {run.kl_coef for run in chosen.values()} == {0.1} and sorted(chosen) == [4, 5]


def test_cells_with_other_coefficients_to_choose_from_are_not_compared(load_study, curves):
    analysis = load_study("facts_map_analysis")
    f1 = {"rm-0-none": [0.8, 0.82, 0.7], "rm-0-annotator": [0.8, 0.9, 0.9]}
    found = [
        make_run(curves, [0, 1, 2], values, cell=cell, seed=seed, kl_coef=coef)
        for cell, values in f1.items()
        for seed in (4, 5, 6)
        for coef in (0.03, 0.1)
    ]
    lonely = make_run(curves, [0, 1], [0.8, 0.9], cell="rm-0-annotator", seed=7)  # a seed of one cell does not matter
    pair = "rm-0-annotator", "rm-0-none"
    assert analysis.verdict_on(curves.tuned_runs([*found, lonely]), *pair) == "helps"
    unequal = curves.tuned_runs([run for run in found if (run.cell, run.kl_coef) != ("rm-0-none", 0.1)])
    assert analysis.verdict_on(unequal, *pair) == "open (unequal tuning)"
    assert "| open (unequal tuning) |" in analysis.primary_table(unequal, [pair])


def test_truth_of_samples_is_the_mean_over_a_steps_answers(curves, tmp_path):
    config = ScenesConfig(seed=4)
    scene = data.training_scene("rl", 3, config)
    shape = scene.objects[0].shape
    absent = next(s for s in scenes.SHAPES if s not in {o.shape for o in scene.objects})
    answers = {1: (f"There is a {shape}.", f"There is a {shape} and a {absent}."), 2: (f"There is a {shape}.",)}
    lines = [json.dumps({"step": step, "id": scene.id, "answer": a}) for step, texts in answers.items() for a in texts]
    (tmp_path / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    first, second = curves.read_truth(tmp_path, config)
    assert (first["utility"], first["false_object"]) == (-1.0, 0.5)  # 1 and 1 - 4; one false claim in two answers
    assert (second["utility"], second["false_object"], second["length"]) == (1.0, 0.0, 4.0)
    assert curves.read_truth(tmp_path, config) == [first, second]


# ---- tables --------------------------------------------------------------------------------------


def runs_of(curves, **f1_by_cell):
    return {
        cell.replace("_", "-"): {4 + i: make_run(curves, [0, 1, 2], f1, cell=cell, seed=4 + i) for i, f1 in enumerate(by_seed)}
        for cell, by_seed in f1_by_cell.items()
    }


def test_facts_help_where_they_are_ahead_at_the_same_kl_and_at_best_checkpoints(load_study, curves):
    analysis = load_study("facts_map_analysis")
    runs = runs_of(
        curves,
        rm_0_none=[[0.8, 0.82, 0.7], [0.8, 0.81, 0.69], [0.8, 0.81, 0.71]],
        rm_0_annotator=[[0.8, 0.9, 0.9], [0.8, 0.91, 0.9], [0.8, 0.91, 0.9]],
    )
    assert analysis.facts_comparisons(runs) == [("rm-0-annotator", "rm-0-none")]
    by_way = analysis.differences(runs, "rm-0-annotator", "rm-0-none", "claim_f1")
    assert by_way["same steps"] == pytest.approx([0.2, 0.21, 0.19])
    assert by_way["best checkpoints"] == pytest.approx([0.08, 0.1, 0.1])
    assert analysis.verdict(by_way) == "helps"
    swapped = {way: [-v for v in values] for way, values in by_way.items()}
    assert analysis.verdict(swapped) == "harms"
    only_after_steps = {way: values if way == "same steps" else [0.0, 0.01, -0.01] for way, values in by_way.items()}
    assert analysis.verdict(only_after_steps) == "delays hacking"
    assert analysis.verdict({way: values[:1] for way, values in by_way.items()}) == "open"  # one seed decides nothing


def test_the_interval_of_a_decision_is_wider(load_study):
    format_mean = load_study("common").format_mean
    assert format_mean([1.0, 3.0]) == "2.00 ± 12.71"
    assert format_mean([1.0, 3.0], confidence=0.975) == "2.00 ± 25.45"  # t(.9875) of one degree of freedom


def test_agreement_of_predicted_and_seen_slopes(load_study):
    slopes = load_study("facts_map_slopes")

    def cell(value, seen, j, width=0.1):
        return slopes.SlopeCell("rm-0-none", "object", 40, {"value": value, "low": value - width, "high": value + width}, j, seen)

    cells = [cell(-0.5, [-0.2, -0.3], 0.1), cell(-0.2, [-0.1], 0.2), cell(0.05, [-0.02], 0.3), cell(0.3, [0.2], -0.1)]
    agreement = slopes.agreement_of(cells)
    assert (agreement["cells"], agreement["decided"], agreement["sign"], agreement["sign_decided"]) == (4, 3, 3 / 4, 1)
    assert agreement["spearman"] == pytest.approx(1)
    # (.5 x .25 + .2 x .1 - .05 x .02 + .3 x .2) / (.25 + .04 + .0025 + .09)
    assert agreement["ratio"] == pytest.approx(0.204 / 0.3825)
    assert agreement["j_sign"] == 1 and agreement["j_spearman"] == pytest.approx(0.2)
    reversed_agreement = slopes.agreement_of([cell(-c.predicted["value"], c.seen, c.j) for c in cells])
    assert (reversed_agreement["sign"], reversed_agreement["spearman"]) == (1 / 4, pytest.approx(-1))
    assert "in 75% of 4 cells (kind x judge), 100% of the 3 whose interval excludes 0" in slopes.agreement_sentence(agreement)


def test_tables_and_figures_of_a_few_runs(load_study, curves, tmp_path):
    analysis, plots, slopes = (load_study(f"facts_map_{name}") for name in ("analysis", "plots", "slopes"))
    f1 = [[0.8, 0.9, 0.7], [0.8, 0.85, 0.75]]
    runs = runs_of(curves, rm_0_none=f1, rm_0_all=f1, claims_all=f1, both_250_all=f1, rm_250_all=f1, oracle=f1)
    slope = {"num_false": 6, "false": {"value": -0.4, "low": -0.5, "high": -0.3}}
    few = {**slope, "num_false": 1}
    judge = {
        "slopes": {"object": slope, "attribute": {**slope, "false": {"value": -0.5, "low": -0.6, "high": 0.1}}, "count": few},
        "detection": {kind: {"J": {"value": 0.3}} for kind in ("object", "attribute", "count")},
    }
    cells = slopes.slope_cells(runs, {"rm-0-all": [judge] * 2})
    assert "| rm-0-all | object | 12 | -0.40 (-0.50 to -0.30) | -0.10 ± 0.00 | 0.30 |" in slopes.slope_table(cells)
    assert [(c.kind, c.is_decided) for c in cells] == [("object", True), ("attribute", False)]  # too few false counts
    assert ("oracle", "rm-0-none") in analysis.other_comparisons(runs)
    assert ("both-250-all", "rm-250-all") in analysis.other_comparisons(runs)
    assert "| rm-0-all - rm-0-none | 2 | +0.0 ± 0.0 |" in analysis.primary_table(runs, analysis.facts_comparisons(runs))
    assert "| rm-0-none | 1.00 ± 0.00 | 2 of 2 |" in analysis.turn_table(runs)
    assert "60.0 ± 0.0" in analysis.cells_table(runs, {"rm-0-all": [{"accuracy": 0.6}] * 2})
    for path in plots.write_figures(tmp_path, runs, {"facts_map_slopes": slopes.slope_figure(cells)}):
        assert path.stat().st_size > 10_000 and path.with_suffix(".svg").exists()


def write_run(directory, f1_by_step, scene_id):
    """Write the files of a run that logs a KL of t - 1 and a reward of t at step t."""
    directory.mkdir(parents=True)
    names = ("claim_f1", "utility", "coverage", "chair_s", "perception_errors", "cooccurrence_errors", "mean_length")
    rows = []
    for step in range(max(f1_by_step) + 1):
        row = {"step": step} | ({"objective/kl": step - 1, "objective/scores": step} if step else {})
        if step in f1_by_step:
            row |= {f"eval/{split}_{name}": f1_by_step[step] for split in ("selection", "held_out") for name in names}
        rows.append(row)
    ledger = [{"step": row["step"], "id": scene_id, "answer": "There is nothing."} for row in rows[1:]]
    for name, lines in (("metrics", rows), ("ledger", ledger)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_coefficients_are_compared_within_themselves(load_study, curves):
    module = load_study("facts_map_coefficients")
    runs = [
        make_run(curves, [0, 1], [0.8, last], cell=cell, seed=seed, kl_coef=kl_coef)
        for seed in (4, 5)
        for cell, kl_coef, last in (
            ("rm-0-none", 0.03, 0.6), ("rm-0-none", 0.3, 0.85), ("rm-0-all", 0.03, 0.7), ("rm-0-all", 0.3, 0.86), ("oracle", 0.3, 0.9),
        )
    ]  # fmt: skip
    groups = module.by_coefficient(runs)
    assert list(groups) == [("rm-0-all", 0.03), ("rm-0-all", 0.3), ("rm-0-none", 0.03), ("rm-0-none", 0.3)]
    assert "| rm-0-none | 0.03 | 2 | 1.00 ± 0.00 | 60.0 ± 0.0 |" in module.policies_table(groups)
    lines = module.facts_table(groups).splitlines()[2:]
    assert [line.split(" | ")[:5] for line in lines if "same steps" in line] == [
        ["| rm-0-all", "0.03", "2", "same steps", "+10.0 ± 0.0"],
        ["| rm-0-all", "0.3", "2", "same steps", "+1.0 ± 0.0"],
    ]
    assert "| rm-0-all | 0.03 | 2 | best checkpoints | +0.0 ± 0.0 |" in "\n".join(lines)  # SFT is the best of both
    (panel,) = module.coefficient_figure(groups).axes
    assert [label.get_text() for label in panel.get_xticklabels()] == ["0.03", "0.3"]


def test_report_of_runs_in_a_directory(load_study, tmp_path, capsys):
    analysis = load_study("facts_map_analysis")
    with pytest.raises(InputError, match="no policy that was evaluated"):
        analysis.report(tmp_path)
    write_run(tmp_path / "demo-4" / "ppo_rm-0-none_kl0.03", {0: 0.8, 2: 0.7, 4: 0.6}, "rl-000001")
    write_run(tmp_path / "demo-4" / "ppo_rm-0-annotator_kl0.03", {0: 0.8, 2: 0.9}, "rl-000001")
    write_run(tmp_path / "demo-4" / "ppo_oracle_kl0.03", {0: 0.8}, "rl-000001")  # nothing after its start
    analysis.report(tmp_path)
    printed = capsys.readouterr().out
    result = json.loads(printed.splitlines()[-1])
    assert result["seeds"] == [4] and list(result["comparisons"]) == ["rm-0-annotator - rm-0-none"]
    by_way = result["comparisons"]["rm-0-annotator - rm-0-none"]["claim_f1"]
    assert by_way["same steps"] == pytest.approx([0.2])  # step 2, KL 2 in both
    assert by_way["largest common KL"] == pytest.approx([0.2]) and by_way["best checkpoints"] == pytest.approx([0.1])
    assert result["comparisons"]["rm-0-annotator - rm-0-none"]["verdict"] == "open"
    assert "| rm-0-none | 4: 4+ |" in printed and (tmp_path / "report.md").exists()  # unfinished


# ---- cells ---------------------------------------------------------------------------------------


def test_cells_and_their_groups(load_study):
    module = load_study("facts_map")
    assert list(module.GROUPS["corners"]) == [f"rm-{n}-{f}" for n in (0, 250, 8000) for f in ("none", "annotator")]
    assert len(module.CELLS) == 12 + 8 + 2 + 2 + 1 + 6
    assert module.select_cells(["oracle", "corners"]) == [list(module.GROUPS["corners"]), ["oracle"]]
    with pytest.raises(InputError, match="--cells rm-3 does not exist"):
        module.select_cells(["rm-3"])
    with pytest.raises(SystemExit):
        module.parse_arguments(["--out", "x", "--seeds", "3"])


def test_facts_of_the_arms(load_study, tmp_path):
    module = load_study("facts_map")
    experiment = module.Experiment(tmp_path, 4)
    scene, next_scene = (data.training_scene("rl", i, experiment.data_config) for i in (7, 8))
    facts = {arm: module.arm_facts(arm, "rl", scene.id, experiment) for arm in ("none", "annotator", "all", "empty", "swapped")}
    assert facts["none"] == ()
    assert render_facts(facts["empty"]) == "Facts (incomplete): object nothing."  # a list, unlike that of `none`
    assert facts["swapped"] == module.arm_facts("annotator", "rl", next_scene.id, experiment) != facts["annotator"]
    listed = [fact.text for fact in facts["all"] if fact.kind == "object"]
    assert len(listed) == len(scene.objects)
    assert all(o.colour in text and o.shape in text for o, text in zip(scene.objects, listed, strict=True))


def test_a_directory_keeps_one_map(load_study, tmp_path):
    module = load_study("facts_map")
    settings = module.Settings("hash", 24, 200, 8, 6000, 500, 2880)
    module.claim_settings(tmp_path, module.asdict(settings))
    module.claim_settings(tmp_path, module.asdict(settings))
    with pytest.raises(InputError, match="another base, eval_scenes"):
        module.claim_settings(tmp_path, module.asdict(module.replace(settings, base="other", eval_scenes=100)))


def test_a_directory_keeps_one_study_with_other_cells(load_study, tmp_path):
    common = load_study("common")

    def claim(**changes):
        settings = {"out": tmp_path, "seeds": [4], "workers": 2, "clip": tmp_path / "clip", "steps": 100, "only": ["a"]} | changes
        common.claim_arguments(common.argparse.Namespace(**settings), ("only",))

    claim()
    claim(seeds=[5], workers=1, only=["b"])
    with pytest.raises(InputError, match="holds a study with another steps: give another --out"):
        claim(steps=4000)


def test_evaluation_scenes_are_a_seeds_own_and_follow_the_benchmarks(load_study):
    module = load_study("facts_map")
    rows = module.evaluation_rows("held_out", 4, 3)
    assert [row.meta["index"] for row in rows] == [1012, 1013, 1014]
    scene = scenes.generate_scene("held_out", 1012, 0)
    full = f"There is {' and '.join(scenes.with_article(o.name) for o in scene.objects)}."
    answers = {row.id: [full if row is rows[0] else "There is nothing."] for row in rows}
    metrics = module.measure_answers(rows, answers)
    assert metrics["chair_s"] == 0 and metrics["false_object"] == 0 and 0 < metrics["coverage"] < 1


def test_pairs_are_ranked_by_claims_that_the_facts_contradict(load_study, tmp_path):
    judges = load_study("facts_map_judges")
    experiment = load_study("facts_map").Experiment(tmp_path, 4)
    scene = data.training_scene("pairs", 7, experiment.data_config)
    shown = scene.objects[0]
    colour = next(c for c in ("red", "blue", "green") if c not in {o.colour for o in scene.objects if o.shape == shown.shape})
    true, false = f"There is a {shown.colour} {shown.shape}.", f"There is a {colour} {shown.shape}."
    rows = [
        Preference(f"{scene.id}-{name}", (), (Message("user", "Describe."),), answers, (1, 2))
        for name, answers in {"right": (true, false), "wrong": (false, true), "tie": (true, true)}.items()
    ]
    ranked = judges.rank_by_claims(rows, "all", experiment)
    assert [(row.id.split("-")[-1], row.answers, row.ranks) for row in ranked] == [
        ("right", (true, false), (1, 2)),
        ("wrong", (true, false), (1, 2)),
    ]
