"""Settings of ppo's evaluations: what is opened, what is refused before a model is loaded."""

import json

import pytest
from PIL import Image

from mmrlhf.evaluation.policy_benchmarks import (
    answer_metrics,
    best_metric,
    check_eval_settings,
    flat_metrics,
    open_benchmarks,
)
from mmrlhf.records import InputError
from tests.helpers.pope_files import write_questions
from tests.helpers.stages import ppo_config

ANSWERS = {"yes": ["Yes"], "no": ["No"]}


@pytest.fixture
def make_config(tmp_path):
    """Return a function that makes a configuration of ppo with some settings."""
    return lambda **settings: ppo_config("model", None, tmp_path / "run", **settings)


@pytest.fixture
def pope(tmp_path):
    """Six questions about three images."""
    folder = tmp_path / "POPE"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (8, 8)).save(folder / f"{i}.jpg")
    return write_questions(folder / "coco_pope_random.json")


def test_metrics_of_few_answers_have_t_intervals():
    """Lengths 4 and 6: the mean is 5 and its standard error 1, and t with one degree of freedom is
    12.706."""
    metrics = answer_metrics([["a cup and plate"], ["a red cup and a plate"]])
    assert metrics["mean_length"] == pytest.approx({"value": 5, "low": 5 - 12.706, "high": 5 + 12.706}, abs=1e-3)
    metrics = answer_metrics([["桌上有杯子。"]])  # without blanks, characters are words
    assert metrics["mean_length"]["value"] == 5 and metrics["distinct_2"]["value"] == 1


def test_open_benchmarks_takes_scenes_without_data(make_config):
    (scenes,) = open_benchmarks(make_config(eval_benchmarks="scenes", eval_limit=4))
    assert len(scenes.task.examples) == 6 and scenes.headline == "chair_s"  # four descriptions, two questions
    assert {example.meta["split"] for example in scenes.task.examples.values()} == {"selection"}  # not what results are on
    assert {"claim_f1", "chair_i_object", "yes_no_accuracy"} <= {*scenes.metric_names}


def test_headline_of_several_parts_is_their_mean(make_config, pope):
    write_questions(pope.parent / "coco_pope_popular.json")
    (both,) = open_benchmarks(make_config(eval_benchmarks="pope", eval_data=str(pope.parent)))
    assert both.headline == "mean/f1" and "random/f1" in both.metric_names
    (one,) = open_benchmarks(make_config(eval_benchmarks="pope", eval_data=str(pope)))
    assert one.headline == "f1"


def test_open_benchmarks_gives_each_its_data(make_config, pope):
    config = make_config(eval_benchmarks="pope, scenes", eval_data=f"scenes=selection,ood_1,pope={pope}", eval_limit=2)
    opened = {item.name: item for item in open_benchmarks(config)}
    assert len(opened["pope"].task.examples) == 2 and opened["pope"].config.data == str(pope)
    assert opened["scenes"].config.data == "selection,ood_1"
    assert {"selection/chair_s", "ood_1/chair_s"} <= {*opened["scenes"].metric_names}  # several parts keep their names
    only_pope = make_config(eval_benchmarks="pope,scenes", eval_data=f"pope={pope}", eval_limit=2)
    assert [item.config.data for item in open_benchmarks(only_pope)] == [str(pope), "selection"]


@pytest.mark.parametrize(
    ("folders", "expected"),
    [("{pope}", ["{pope}", "{pope}"]), ("pope={pope}", ["{pope}", None]), ("x,pope={pope}", ["{pope}", "x"])],
)
def test_open_benchmarks_gives_each_its_image_folder(make_config, pope, folders, expected):
    folder = str(pope.parent)
    settings = {"eval_data": f"pope={pope}", "eval_image_folder": folders.format(pope=folder), "eval_limit": 2}
    opened = open_benchmarks(make_config(eval_benchmarks="pope,scenes", **settings))
    assert [item.config.image_folder for item in opened] == [name and name.format(pope=folder) for name in expected]


def test_score_has_the_metrics_of_the_benchmark(make_config, pope):
    (item,) = open_benchmarks(make_config(eval_benchmarks="pope", eval_data=str(pope)))
    labels = {id_: example.meta["label"] for id_, example in item.task.examples.items()}
    row = item.score({id_: ANSWERS[label if number else "no"] for number, (id_, label) in enumerate(labels.items())})
    # One "yes" of three is missed: precision 1, recall 2/3.
    assert row["metrics"]["f1"]["value"] == pytest.approx(0.8) and row["metrics"]["accuracy"]["value"] == pytest.approx(5 / 6)
    assert row["n"] == 6 and row["metrics"].keys() == {*item.metric_names} and row["metrics"]["f1"]["low"] < 0.8


def test_open_benchmarks_reads_a_suite(make_config, pope, tmp_path):
    (tmp_path / "suite.yaml").write_text(json.dumps({"benchmarks": {"pope": {"data": str(pope), "suffix": "Briefly."}}}))
    (item,) = open_benchmarks(make_config(eval_benchmarks=str(tmp_path / "suite.yaml")))
    assert next(iter(item.task.examples.values())).prompt[0].content.endswith("\nBriefly.")
    for setting in ({"adapter_path": "x"}, {"reward_model_path": "x"}, {"judge": "rules"}):
        (tmp_path / "suite.yaml").write_text(json.dumps({"benchmarks": {"pope": {"data": str(pope), **setting}}}))
        with pytest.raises(InputError, match=f"evaluates its own policy, without {next(iter(setting))}: leave it out"):
            open_benchmarks(make_config(eval_benchmarks=str(tmp_path / "suite.yaml")))


def test_flat_metrics_prefer_robust_and_drop_the_only_part():
    def leaf(value):
        return {"value": value, "low": 0, "high": 1}

    nested = {"official": {"s": {"a": leaf(1), "b": leaf(2)}}, "robust": {"s": {"a": leaf(3), "c": None}}}
    assert flat_metrics(nested) == {"a": leaf(3), "b": leaf(2), "c": None}
    assert flat_metrics({"official": {"s": {"a": leaf(1)}, "t": {"a": None}}, "robust": {}}) == {"s/a": leaf(1), "t/a": None}
    assert flat_metrics({"robust": {"a": leaf(1), "s": {"a": leaf(2)}}}) == {"a": leaf(1), "s/a": leaf(2)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_benchmarks": "popee"}, "there is no popee in eval: did you mean pope?"),
        ({"eval_benchmarks": "scenes,"}, "eval_benchmarks 'scenes,' has an empty name"),
        ({"eval_benchmarks": "pope"}, "eval_benchmarks pope: this benchmark needs its data: add --eval_data PATH"),
        ({"eval_benchmarks": "pope", "eval_data": "none.json"}, "--eval_data none.json does not exist"),
        ({"eval_benchmarks": "scenes", "eval_data": "train"}, "--eval_data train is not a split"),
        ({"eval_benchmarks": "scenes", "eval_data": "pope=x"}, "eval_data names pope, which is not one of eval_benchmarks"),
        ({"eval_benchmarks": "scenes", "eval_image_folder": "amber=x"}, "eval_image_folder names amber, which is not one of"),
        ({"eval_benchmarks": "scenes,eval/scenes.py"}, "two benchmarks scenes: leave one out"),
        ({"eval_benchmarks": "mmhal_bench"}, "asks a judge: measure it after the run, with `mmrlhf eval mmhal_bench`"),
        ({"eval_benchmarks": "eval/pope.py", "reward_terms": "eval/pope.py:f=1"}, "what is optimised must not evaluate"),
    ],
)
def test_open_benchmarks_refuses(make_config, settings, message, monkeypatch):
    from mmrlhf.files.bundled import folder

    monkeypatch.chdir(folder("eval").parent)
    with pytest.raises(InputError) as error:
        open_benchmarks(make_config(**settings))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eval_steps": 5}, "eval_steps is about benchmarks, and there are none: add eval_benchmarks"),
        ({"eval_data": "x"}, "eval_data is about benchmarks"),
        (
            {"eval_benchmarks": "scenes", "load_best_model_at_end": True},
            "needs metric_for_best_model: add it, as BENCHMARK/METRIC",
        ),
        ({"eval_benchmarks": "scenes", "greater_is_better": True}, "is about metric_for_best_model, which is not given"),
        ({"metric_for_best_model": "scenes/claim_f1"}, "metric_for_best_model is about benchmarks"),
    ],
)
def test_check_eval_settings_refuses(make_config, settings, message):
    with pytest.raises(InputError, match=message):
        check_eval_settings(make_config(**settings), has_function=False)


def test_best_metric_knows_its_direction_and_refuses_the_reward(make_config):
    def best(metric, has_function=False, **settings):
        config = make_config(eval_benchmarks="scenes", eval_limit=2, metric_for_best_model=metric, **settings)
        return best_metric(config, open_benchmarks(config), has_function, {"rewards/accuracies": True})

    assert best("scenes/claim_f1") == ("scenes/claim_f1", True) and best("eval/scenes/chair_s") == ("scenes/chair_s", False)
    assert best("scenes/mean_length", greater_is_better=False) == ("scenes/mean_length", False)
    assert best("my_accuracy", has_function=True) == ("my_accuracy", True)
    assert best("eval/rewards/accuracies", has_function=True) == ("rewards/accuracies", True)
    with pytest.raises(InputError, match="scenes does not give it: did you mean scenes/claim_f1"):
        best("scenes/claims_f1")
    with pytest.raises(InputError, match="not known whether more of it is better: add greater_is_better"):
        best("scenes/mean_length")
    for metric in (
        "objective/scores",
        "rewards/fact_rm/mean",
        "reward",
        "eval_reward",
        "claims/contradicted_rate@clip",
        "fact_rm",
    ):
        with pytest.raises(
            InputError, match="optimised must not choose: give a metric of eval_benchmarks, such as scenes/chair_s"
        ):
            best(metric, has_function=True)
