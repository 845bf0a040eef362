"""The command line passes the right arguments to each command, refuses bad ones, and is fast."""

import logging
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

import mmrlhf
from mmrlhf.cli import app as cli
from mmrlhf.cli.app import ARENA_COMMANDS, CALIBRATE_COMMANDS, COMMANDS, DATA_COMMANDS, LABEL_COMMANDS, main
from mmrlhf.config import DPOConfig, EvalConfig, GenerateConfig, PPOConfig, RewardConfig, SFTConfig
from mmrlhf.config.foreign_commands import OTHER_COMMANDS
from mmrlhf.config.foreign_settings import EXPLAINED_SETTINGS, SAME_SETTINGS
from mmrlhf.config.loader import config_fields
from mmrlhf.records import InputError

ROOT = Path(mmrlhf.__file__).parents[1]
MODEL, ROWS = str(ROOT / "data" / "tiny_vlm"), str(ROOT / "data" / "samples" / "rankings.jsonl")
REQUIRED = ["--model_name_or_path", MODEL, "--dataset_name", ROWS, "--output_dir", "out"]


@pytest.fixture
def stub_stage(monkeypatch):
    """Return a function that replaces a module's function and records its calls."""

    def install(module_name, function_name, result=None):
        calls = []

        def stub(*args, **kwargs):
            calls.append((*args, *kwargs.values()))
            if isinstance(result, BaseException):
                raise result
            return result

        module = ModuleType(f"mmrlhf.{module_name}")
        setattr(module, function_name, stub)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return calls

    return install


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_main_merges_config_file_and_flags(stub_stage, tmp_path):
    calls = stub_stage("sft", "sft")
    (tmp_path / "recipe.yaml").write_text("seed: 3\nlora_r: 4")
    assert main(["sft", "--config", str(tmp_path / "recipe.yaml"), *REQUIRED, "--lora_r", "8"]) == 0
    assert calls == [(SFTConfig(model_name_or_path=MODEL, dataset_name=ROWS, output_dir="out", seed=3, lora_r=8),)]


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ([], False),
        (["--whiten_rewards"], True),
        (["--whiten_rewards", "true"], True),
        (["--whiten_rewards", "false"], False),
        (["--whiten_rewards", "--no-whiten_rewards"], False),
    ],
)
def test_main_parses_boolean_flags(stub_stage, flags, value):
    calls = stub_stage("ppo", "ppo")
    assert main(["ppo", *REQUIRED, *flags, "--max_steps", "-1"]) == 0
    assert calls[0][0].whiten_rewards is value


def test_main_takes_values_that_begin_with_a_minus_sign(stub_stage):
    calls = stub_stage("ppo", "ppo")
    assert main(["ppo", *REQUIRED, "--reward_clip_range", "-5,5"]) == 0
    assert calls[0][0].reward_clip_range == "-5,5"
    assert main(["ppo", *REQUIRED, "--reward_clip_range", "-.5,1e1"]) == 0


def test_main_eval_takes_benchmark_and_config(stub_stage, tmp_path):
    calls = stub_stage("evaluate", "evaluate")
    benchmark = tmp_path / "mine.py"
    benchmark.write_text('VERSION = LICENSE = HEADLINE = CLUSTER = "1"\nDIRECTION = "higher"\nload = score = aggregate = print\n')
    flags = ["--model_name_or_path", MODEL, "--output_dir", "out", "--limit", "5"]
    assert main(["eval", str(benchmark), *flags]) == 0
    assert calls[0][0] == str(benchmark)
    assert calls[0][1].limit == 5
    assert main(["eval", str(tmp_path / "absent.py"), *flags]) == 2
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("line", "module", "function", "received"),
    [
        ("demo", "demo.pipeline", "demo", ("runs/demo", False, 0)),
        ("demo --output_dir d --seed 2 --fresh", "demo.pipeline", "demo", ("d", True, 2)),
        ("data check f.json --facts_file t", "commands.check", "check", ("f.json", None, "t", "train", None)),
        ("data stats f.json --facts_file t", "commands.stats", "stats", ("f.json", None, "t", "runs/stats", "train")),
        (
            "data convert f --to trl --output_file o",
            "commands.convert",
            "convert",
            ("f", "trl", "o", None, None, False, 0, "train"),
        ),
        (
            "data convert f --to trl --output_file o --balance_lengths --seed 3",
            "commands.convert",
            "convert",
            ("f", "trl", "o", None, None, True, 3, "train"),
        ),
        ("data scenes --output_dir d --rows 7 --seed 2", "scenes", "export_dataset", ("d", 7, 2)),
        ("data tiny-vlm --output_dir d", "demo.tiny_vlm", "train_tiny_vlm", ("d", 0, "float32", 0.02)),
        (
            "data tiny-vlm --output_dir d --unaided_review_rate 0.1",
            "demo.tiny_vlm",
            "train_tiny_vlm",
            ("d", 0, "float32", 0.1),
        ),
    ],
)
def test_main_dispatches_other_commands(stub_stage, line, module, function, received):
    calls = stub_stage(module, function)
    assert main(line.split()) == 0
    assert calls == [received]


def test_main_check_returns_the_commands_exit_code(stub_stage):
    stub_stage("commands.check", "check", result=1)
    assert main(["data", "check", "f.json"]) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("stf", "mmrlhf has no command stf: did you mean sft?"),
        ("data convert f --to tlr --output_file o", "invalid choice: 'tlr'"),
        ("data chek", "mmrlhf data has no command chek: did you mean check?"),
        ("sft --learning_rte 1", "mmrlhf sft has no flag --learning_rte: did you mean --learning_rate?"),
        ("sft --seed=x", "--seed must be an integer of at least 0, not 'x'"),
        ("sft --learning 1", "has no flag --learning"),
        ("sft rows.jsonl", "does not expect 'rows.jsonl' here"),
        ("sft --seed", "--seed: expected one argument"),
        ("sft --config nowhere/no.yaml", "nowhere/no.yaml does not exist, and configs has none of this name: "),
        ("sft", "model_name_or_path, dataset_name, output_dir are required: add --model_name_or_path ..."),
        ("data tiny-vlm --output_dir d --unaided_review_rate 2", "must be a number from 0 to 1, not '2'"),
        ("data tiny-vlm --output_dir d --unaided_review_rate x", "must be a number from 0 to 1, not 'x'"),
        ("data scenes --output_dir d --rows few", "must be an integer of at least 0, not 'few'"),
    ],
)
def test_main_refuses_bad_arguments_in_one_line(capsys, line, message):
    assert main(line.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        # TRL
        ("ppo --lr 1e-5", "has no flag --lr: use --learning_rate"),
        ("ppo --gradient_accumulation_steps 4", "--gradient_accumulation_steps: use micro_batch_tokens: "),
        ("sft --bf16", "has no flag --bf16: use dtype bfloat16"),
        ("sft --bf16 true", "has no flag --bf16: use dtype bfloat16"),
        ("sft --wandb_project mine", "has no flag --wandb_project: report_to sends the metrics of training to tensorboard"),
        ("sft --load_in_4bit", "has no flag --load_in_4bit: dtype nf4 loads the base in 4 bits"),
        ("sft --lora-dropout 0.05", "has no flag --lora-dropout: there is no dropout"),
        ("ppo --beta 0.1", "has no flag --beta: use --kl_coef"),
        ("sft --batch_size 8", "has no flag --batch_size: use --per_device_train_batch_size"),
        (
            "data check --dataset_name rows.jsonl",
            "has no flag --dataset_name: give the file without a flag, `mmrlhf data check FILE`",
        ),
        ("sft --no-packing", "has no flag --no-packing: answers to one prompt are packed"),
        # LLaMA-Factory, ms-swift, verl
        ("sft --deepspeed ds.json", "has no flag --deepspeed: the launcher decides"),
        ("sft --stage sft", "has no flag --stage: the stage is the command"),
        ("sft --cutoff_len 2048", "has no flag --cutoff_len: use --max_length"),
        ("reward --lora_rank 8", "has no flag --lora_rank: use --lora_r"),
        ("ppo --adv_estimator=grpo", "has no flag --adv_estimator: use --advantage_estimator"),
        (
            "sft --stage sft --lr 1e-5 --bf16 --zzz -1",
            "--bf16: use dtype bfloat16; mmrlhf sft has no flag --zzz: `mmrlhf sft --help`",
        ),
        ("sft --image_max_pixels 9", "has no flag --image_max_pixels: use --max_pixels"),
        ("sft --mask_history true", "has no flag --mask_history: only answers are learnt"),
        ("merge --model x", "mmrlhf has no command merge: use `mmrlhf export --merge`"),
        # lmms-eval
        ("eval pope --tasks pope", "has no flag --tasks: benchmarks are the first arguments"),
        # values and commands
        ("sft --dtype bf16", "--dtype must be float32 or bfloat16 or nf4, not 'bf16': use bfloat16"),
        ("dpo --pref_beta 0.2", "has no flag --pref_beta: use --beta"),
        ("dpo --rpo_alpha 0.2", "--rpo_alpha: `mmrlhf dpo` adds the best answer's log-likelihood with loss_type sigmoid,sft"),
        ("simpo --beta 2", "mmrlhf has no command simpo: `mmrlhf dpo` learns from the same pairs"),
        ("grpo", "mmrlhf has no command grpo: use `mmrlhf ppo --advantage_estimator grpo`"),
        ("rloo_trainer", "mmrlhf has no command rloo_trainer: the choices are arena, calibrate, claims, "),
        ("reward_eval", "mmrlhf has no command reward_eval: did you mean reward-eval?"),
        # by a part of the name
        ("ppo --vllm_tensor_parallel_size 2", "--vllm_tensor_parallel_size: answers are sampled in this process"),
        ("ppo --clip_reward_value 5", "--clip_reward_value: reward_clip_range clips the sum of an answer's rewards"),
        ("ppo --clip_ratio_high 0.28", "--clip_ratio_high: use --epsilon_high"),
        ("ppo --top_p 0.9", "--top_p: answers are sampled from the whole distribution"),
        ("sft --loraplus_lr_ratio 16", "--loraplus_lr_ratio: the optimiser is AdamW"),
        ("sft --lora_ga 1", "--lora_ga: adapters are plain LoRA"),
        ("sft --hub_private_repo 1", "--hub_private_repo: training uploads nothing"),
        ("sft --max_prompt_length 9", "--max_prompt_length: max_length limits prompt and answer together"),
        ("ppo --ref_model_mixup_alpha 1", "--ref_model_mixup_alpha: sync_ref_model and ref_model_sync_steps"),
        ("ppo --facts f.jsonl", "--facts: use --facts_file"),
        ("data facts f.json --output_file o --data rows.jsonl", "--data: use --dataset_name"),
        ("sft --batch_size 4", "--batch_size: use --per_device_train_batch_size"),
        ("eval pope --question-file q.jsonl", "--question-file: use --data"),
        # a misspelt name comes before other tools'
        ("ppo --whiten_reward 1", "did you mean --whiten_rewards?"),
        # nothing is like it: neither a far-fetched suggestion nor all flags
        ("sft --frobnicate 1", "has no flag --frobnicate: `mmrlhf sft --help` lists its flags"),
    ],
)
def test_main_says_what_takes_the_place_of_another_tools_setting(capsys, line, message):
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_settings_of_other_tools_name_settings_that_exist():
    configs = (SFTConfig, RewardConfig, DPOConfig, PPOConfig, GenerateConfig, EvalConfig)
    fields = {name for cls in configs for name in config_fields(cls)}
    assert {name for names in SAME_SETTINGS.values() for name in names.split()} <= fields
    assert not SAME_SETTINGS.keys() & EXPLAINED_SETTINGS.keys()
    assert not OTHER_COMMANDS.keys() & COMMANDS.keys()


def test_main_accepts_hyphens_in_flags(stub_stage):
    calls = stub_stage("ppo", "ppo")
    required = [word.replace("_", "-") if word.startswith("--") else word for word in REQUIRED]
    assert main(["ppo", *required, "--no-whiten-rewards", "--learning-rate=1e-3", "--image-folder", str(ROOT)]) == 0
    config = calls[0][0]
    assert (config.whiten_rewards, config.learning_rate, config.image_folder) == (False, 1e-3, str(ROOT))


def test_help_lists_the_settings_of_a_stage_before_those_of_the_engine(capsys):
    with pytest.raises(SystemExit):
        main(["sft", "--help"])
    output = capsys.readouterr().out
    assert (
        output.index("--tuning")
        < output.index("--learning_rate")
        < output.index("--image_folder")
        < output.index("--share_prefix")
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("reward-bench --probes 3", "`mmrlhf reward-bench` was renamed: use `mmrlhf reward-eval`"),
        ("data base", "`mmrlhf data base` was renamed: use `mmrlhf data tiny-vlm`"),
        ("sft --train full", "`--train` was renamed: use `--tuning`"),
        ("plan ppo --prefix=off", "`--prefix` was renamed: use `--share_prefix`"),
        ("ppo --no-same_verifier", "`--no-same_verifier` was renamed: use `--no-allow_monitoring_reward_verifiers`"),
        ("eval pope --judgments j.jsonl", "`--judgments` was renamed: use `--recorded_judgments`"),
        ("reward --loss_type margin", "--loss_type: `margin` was renamed: use `bt_margin`"),
    ],
)
def test_main_refuses_old_names_with_the_new_ones(capsys, line, message):
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--allow_worse_judge"], True),
        (["--allow-worse-judge", "true"], True),
        (["--allow_worse_judge=false"], False),
        (["--no-allow_worse_judge"], False),
        (["--allow_worse_judge", "--allow_worse_reward_model", "false"], False),  # the last one counts
    ],
)
def test_main_accepts_a_deprecated_flag_with_a_note(stub_stage, capsys, arguments, value):
    calls = stub_stage("ppo", "ppo")
    assert main(["ppo", *REQUIRED, *arguments]) == 0
    assert calls[0][0].allow_worse_reward_model is value
    flag = arguments[0].partition("=")[0]
    new_flag = "--no-allow_worse_reward_model" if flag.startswith("--no-") else "--allow_worse_reward_model"
    assert f"note: `{flag}` was renamed: use `{new_flag}`\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "suite",
    ["benchmarks: [scenes]\njudgments: j.jsonl", "benchmarks: {scenes: {judgments: j.jsonl}}"],
)
def test_main_eval_refuses_old_names_in_a_suite(tmp_path, capsys, suite):
    (tmp_path / "suite.yaml").write_text(suite)
    assert main(["eval", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "error: `judgments` was renamed: use `recorded_judgments`\n"


def test_main_turns_stage_errors_into_exit_codes(stub_stage, capsys):
    stub_stage("sft", "sft", result=InputError("row 3: no image"))
    assert main(["sft", *REQUIRED]) == 2
    assert capsys.readouterr().err == "error: row 3: no image\n"
    stub_stage("sft", "sft", result=KeyboardInterrupt())
    assert main(["sft", *REQUIRED]) == 130
    assert "the same command resumes" in capsys.readouterr().err
    stub_stage("sft", "sft", result=RuntimeError("a defect"))
    with pytest.raises(RuntimeError):
        main(["sft", *REQUIRED])


@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS.values(),
        *DATA_COMMANDS.values(),
        *CALIBRATE_COMMANDS.values(),
        *LABEL_COMMANDS.values(),
        *ARENA_COMMANDS.values(),
    ],
    ids=lambda command: command.name,
)
def test_help_shows_example_with_existing_flags(command, capsys):
    flags = {word for word in shlex.split(command.example) if word.startswith("--")}
    try:
        assert main([*command.name.split(), "--help"]) == 0
    except SystemExit as exit_:
        assert exit_.code == 0
    output = capsys.readouterr().out
    assert command.example in output
    if command.name not in ("data", "calibrate", "label", "arena"):  # these list commands, not flags
        usage, _ = output.split("example:")
        assert all(f"{flag} " in usage for flag in flags)


def test_help_shows_docstring_range_choices_and_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        main(["ppo", "--help"])
    output = capsys.readouterr().out
    assert "Lambda of generalised advantage estimation; 1 without a critic. (from 0 to 1; default 0.95)" in output
    assert "--dtype float32|bfloat16" in output
    assert "Optimiser steps of linear warm-up. (at least 0; default 0)" in output  # an inherited field


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    output = capsys.readouterr().out
    assert all(command.example in output for command in COMMANDS.values())
    assert main([]) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sft --model runs/none --data x.jsonl --out o", "model_name_or_path runs/none does not exist: give the directory or"),
        ("sft --model owner/name --data x.jsonl --out o", "error: dataset_name x.jsonl does not exist: give a file, a"),
        (
            "sft --model data/none --data owner/x.parquet --out o",
            "data/none does not exist: give the directory or the Hub id of a model; ",
        ),
        (
            "ppo --model o/m --data o/d --out o --reward_model_path a,b",
            "reward_model_path a does not exist: give the directory that the reward stage wrote; reward_model_path b",
        ),
        ("generate --model o/m --data o/d --out o.jsonl --adapter_path ./none", "adapter_path ./none does not exist"),
        ("score --reward_model_path none --data o/d --out o.jsonl --image_folder no", "image_folder no does not exist"),
        ("reward --model o/m --data o/d --out o --facts_file no.jsonl", "facts_file no.jsonl does not exist: correct the path"),
        ("reward --model o/m --data o/d --out o --eval_dataset_name no.jsonl", "eval_dataset_name no.jsonl does not exist"),
        ("eval scenes --model data/none --out o", "model_name_or_path data/none does not exist"),
        ("eval scenes --answers none.jsonl --out o", "answers none.jsonl does not exist"),
    ],
)
def test_missing_paths_are_reported_before_anything_heavy_is_imported(line, message, tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    for module in ("sft", "ppo", "reward_model", "generate", "commands.score", "evaluate"):
        monkeypatch.setitem(sys.modules, f"mmrlhf.{module}", None)  # an import would fail
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_help_imports_no_heavy_packages():
    heavy = "torch transformers datasets peft accelerate numpy PIL"
    code = f"import sys, mmrlhf.cli; mmrlhf.cli.main(['--help']); print(sys.modules.keys() & set('{heavy}'.split()))"
    assert run_python("-c", code).stdout.splitlines()[-1] == "set()"


def test_module_entry_point_reports_errors_and_version():
    finished = run_python("-m", "mmrlhf", "sft", "--lora_r", "0", *REQUIRED)
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "error: --lora_r must be an integer of at least 1, not '0'\n"
    assert run_python("-m", "mmrlhf", "--version").stdout == f"{mmrlhf.__version__}\n"


def test_package_exports_public_names_lazily():
    code = "import mmrlhf, sys; print(mmrlhf.SFTConfig.__name__, mmrlhf.Preference.__name__, 'torch' in sys.modules)"
    assert run_python("-c", code).stdout == "SFTConfig Preference False\n"
    assert mmrlhf.FeedbackConfig.__name__ == "FeedbackConfig" and callable(mmrlhf.feedback.feedback)
    with pytest.raises(AttributeError, match="sfft"):
        _ = mmrlhf.sfft


def test_cli_prints_no_control_code_of_a_config(tmp_path, capsys):
    file = tmp_path / "esc.yaml"
    file.write_text('"\\e[31m\\u202Eabc": 1\n')
    assert main(["sft", "--config", str(file)]) == 2
    printed = capsys.readouterr().err
    assert "\ufffd[31m\ufffdabc is unknown" in printed and "\x1b" not in printed and "\u202e" not in printed


def test_verbose_prints_what_the_engine_decides(monkeypatch, capsys):
    logger = logging.getLogger("mmrlhf")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    module = ModuleType("mmrlhf.sft")
    module.sft = lambda config: logging.getLogger("mmrlhf.engine.prefill").info("shared-prefix batching is on")
    monkeypatch.setitem(sys.modules, "mmrlhf.sft", module)
    assert main(["sft", *REQUIRED]) == 0 and "shared-prefix" not in capsys.readouterr().out
    assert main(["sft", "--verbose", *REQUIRED]) == 0
    assert capsys.readouterr().out == "note: shared-prefix batching is on\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("data check {long}.jsonl", "cannot be read (File name too long)"),
        ("data check {long}", "does not exist"),
        ("sft --config {long}", "there is no "),
        ("generate --model {long} --data {long} --out o.jsonl", "model_name_or_path a"),
    ],
)
def test_main_refuses_names_that_the_system_cannot_hold(capsys, line, message):
    assert main(line.format(long="a" * 5000).split()) == 2
    assert message in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_main_explains_errors_of_the_system_in_one_line(stub_stage, capsys):
    stub_stage("commands.check", "check", result=PermissionError(13, "Permission denied", "/data/rows.jsonl"))
    assert main(["data", "check", "rows.jsonl"]) == 2
    assert (
        capsys.readouterr().err == "error: /data/rows.jsonl cannot be used (Permission denied): check its path and permissions\n"
    )


def test_main_passes_on_errors_of_the_system_without_a_file(stub_stage):
    stub_stage("commands.check", "check", result=ConnectionResetError(104, "Connection reset by peer"))
    with pytest.raises(ConnectionResetError):
        main(["data", "check", "rows.jsonl"])


def test_main_ends_quietly_when_its_reader_does():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-u", "-m", "mmrlhf", "--help"]
    run = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(writer)
    assert (run.returncode, run.stderr) == (141, "")


@pytest.mark.parametrize(
    ("line", "starts_over"),
    [
        ("data check rows.jsonl", True),
        ("data facts coco.json --output_file f.jsonl", True),
        ("data facts rows.jsonl --captioner http://localhost:1/v1 --output_file f.jsonl", False),
        ("data facts rows.jsonl --captioner=http://localhost:1/v1 --output_file f.jsonl", False),
        ("export --model_name_or_path m --output_dir o", True),
        ("calibrate clip --data d --out c.json", True),
        ("replay step.safetensors", True),
        ("label export l.db", True),
        ("label report l.db", True),
        ("label serve rows.jsonl", False),
        ("arena export v.db", True),
        ("arena report v.db", True),
        ("arena judge a=a.jsonl", False),
        ("label", False),
        ("ppo --config c", False),
    ],
)
def test_interrupted_commands_say_whether_they_start_anew(line, starts_over, monkeypatch, capsys):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_dispatch", interrupt)
    assert main(line.split()) == 130
    assert ("starts over" if starts_over else "resumes from") in capsys.readouterr().err


def test_main_reads_a_config_from_a_pipe(stub_stage, tmp_path):
    os.mkfifo(fifo := tmp_path / "config")
    thread = threading.Thread(target=lambda: fifo.write_text("seed: 5"))
    thread.start()
    calls = stub_stage("sft", "sft")
    assert main(["sft", "--config", str(fifo), *REQUIRED]) == 0 and calls[0][0].seed == 5
    thread.join()


def test_label_add_takes_both_names_of_a_split(stub_stage):
    for flag in ("--split", "--dataset_train_split"):
        calls = stub_stage("label", "add_tasks")
        assert main(["label", "add", "a.jsonl", "--output_file", "l.db", flag, "test"]) == 0 and "test" in calls[0]


def test_main_finds_a_recipe_next_to_a_folder_of_its_name(stub_stage, tmp_path, monkeypatch):
    (tmp_path / "demo" / "sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    calls = stub_stage("sft", "sft")
    assert main(["sft", "--config", "demo/sft", *REQUIRED]) == 0 and len(calls) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plan --data sft.jsonl --model m/x ppo", "needs a stage (sft, reward, dpo, ppo) or a recipe of one"),
        ("plan demo/ppo --config demo/sft --model m", "has two recipes, demo/ppo and --config demo/sft: give one"),
        ("data facts f.json --output_file o.jsonl --max_tokens 9", "--max_tokens is for --captioner: give that, too"),
        ("data facts f.json --output_file o.jsonl --image_folder .", "--image_folder is for rows: give --dataset_name"),
    ],
)
def test_main_refuses_arguments_that_would_do_nothing(capsys, line, message):
    assert main(line.split()) == 2
    assert message in capsys.readouterr().err


def test_main_reads_a_flag_of_files_by_each_of_its_names(stub_stage):
    calls = stub_stage("commands.claims", "extract")
    assert main(["claims", "a.jsonl", "--facts_file", "f.jsonl", "--lexicon_file", "words.txt"]) == 0
    assert calls == [("a.jsonl", "f.jsonl", None, "words.txt")]
    calls = stub_stage("sft", "sft")
    assert main(["sft", *REQUIRED, "--split", "test"]) == 0 and calls[0][0].dataset_train_split == "test"
