"""Rows mixed into ppo's updates: which ones a process has."""

import json
from types import SimpleNamespace

import torch

from mmrlhf.training.ppo.ptx import PTXRows, read_ptx_rows
from tests.helpers.stages import ppo_config


def rows_of(vlm, examples, tmp_path, num_processes, update):
    """Return the ids of each process's rows; each process counts its own tokens here."""
    config = ppo_config("m", None, tmp_path, per_device_train_batch_size=4 // num_processes, num_mini_batches=4)
    ids = []
    for rank in range(num_processes):
        accelerator = SimpleNamespace(num_processes=num_processes, process_index=rank, reduce=lambda tensor, reduction: tensor)
        batch = PTXRows(config, vlm, examples, accelerator).batch(update)
        ids.append([] if batch is None else [row.id for row in batch.rows])
        assert batch is None or torch.equal(batch.num_tokens, batch.batch.is_learnt_NT.sum().float())
    return ids


def test_rows_are_the_same_on_any_number_of_processes(vlm, examples, tmp_path):
    """A minibatch of one prompt mixes in one row, which one of two processes has."""
    for update in range(3):
        ((one,),) = rows_of(vlm, examples, tmp_path, 1, update)
        assert rows_of(vlm, examples, tmp_path, 2, update) == [[one], []]


def test_rows_are_not_asked_for_the_facts_of_the_prompts(tmp_path):
    """The facts are about the prompts' images, and supervised fine-tuning reads none."""
    (tmp_path / "sft.jsonl").write_text(json.dumps({"prompt": "What is a cup?", "images": [], "answer": "A vessel."}) + "\n")
    (tmp_path / "facts.jsonl").write_text(json.dumps({"image": "other.png", "facts": ["object: a cup"]}) + "\n")
    config = ppo_config(
        "m", None, tmp_path, ptx_coef=1.0, ptx_dataset_name=str(tmp_path / "sft.jsonl"), facts_file=str(tmp_path / "facts.jsonl")
    )
    (row,) = read_ptx_rows(config, SimpleNamespace(claim_rows=lambda rows, kind: None))
    assert row.answer == "A vessel." and row.facts == ()
