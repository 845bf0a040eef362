"""A batch's answers, comparisons and weights, and its loss against the sum over its rows."""

import dataclasses
import math

import pytest
import torch
from accelerate import Accelerator

from mmrlhf.config import DPOConfig
from mmrlhf.engine.scoring import sequence_logps
from mmrlhf.models.adapters import Adapters, Role
from mmrlhf.models.images import open_image
from mmrlhf.records import Preference
from mmrlhf.training.dpo.batch import build_batch
from mmrlhf.training.dpo.image_pairs import rejected_images
from mmrlhf.training.dpo.step import Counts, compute_gradients, count, mean_metrics, preference_loss


def dpo_config(**settings):
    return DPOConfig(model_name_or_path="x", dataset_name="x", output_dir="x", **{"beta": 0.5, **settings})


@pytest.fixture
def rows(pairs, examples):
    """A pair, a ranking of three answers whose last two are tied, and another pair."""
    ranking = Preference(
        "ranking", examples[1].images, examples[1].prompt, (examples[1].answer, "A ring.", "Nine objects."), (1, 2, 2)
    )
    return [pairs[0], ranking, pairs[2]]


@pytest.fixture
def policy(vlm):
    """An adapter with random weights."""
    adapters = Adapters(vlm)
    adapters.add("policy", 2, 4, seed=0)
    with torch.no_grad():
        for i, parameter in enumerate(adapters.parameters("policy").values()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return Role(adapters, "policy")


def gradients_of(config, policy, rows, other_images):
    """Return the metrics and all gradients, as one vector, of a step on some rows."""
    batch = build_batch(config, policy.vlm, rows, other_images)
    accelerator, reference = Accelerator(), Role(policy.adapters, None)
    counts = count(accelerator, batch)
    sums = compute_gradients(config, accelerator, policy, batch, batch.weighted_logps(reference), counts)
    return mean_metrics(sums, counts), torch.cat([p.grad.flatten() for p in policy.parameters()])


def test_build_batch_weighs_the_comparisons_of_a_row_to_one(vlm, rows):
    batch = build_batch(dpo_config(), vlm, rows, [None, None, rows[0].images])
    assert batch.prompts_per_row == [1, 1, 2] and batch.answers_per_row == [2, 3, 3]
    comparisons = list(zip(*(t.tolist() for t in (batch.row_C, batch.better_C, batch.worse_C, batch.weight_C)), strict=True))
    # The ranking's tie is left out; the last row's best answer is compared with itself.
    assert comparisons == [(0, 0, 1, 1.0), (1, 2, 3, 0.5), (1, 2, 4, 0.5), (2, 5, 6, 1.0), (2, 5, 7, 1.0)]
    assert batch.is_image_pair_C.tolist() == [False] * 4 + [True]
    assert batch.is_best_N.nonzero()[:, 0].tolist() == [0, 2, 5]
    assert torch.equal(batch.completions.token_ids_NT[5], batch.completions.token_ids_NT[7])


def test_build_batch_weighs_changed_tokens(vlm, examples):
    row = Preference.from_pair("r", examples[0].images, examples[0].prompt, "There is a red ring.", "There is a blue ring.")
    batch = build_batch(dpo_config(changed_token_weight=5), vlm, [row], [None])
    ids, weights = batch.completions.token_ids_NT, batch.token_weights_NT
    changed = [vlm.decode(ids[n][weights[n] == 5]).strip() for n in range(2)]
    assert changed == ["red", "blue"] and set(weights.flatten().tolist()) <= {0.0, 1.0, 5.0}
    assert torch.equal(weights > 0, batch.completions.mask_NT.bool())
    plain = build_batch(dpo_config(), vlm, [row], [None])
    assert torch.equal(plain.token_weights_NT, plain.completions.mask_NT.float())


def test_preference_loss_is_the_weighted_mean_over_rows(vlm, rows):
    """Log-ratios chosen by hand: log 3 and 0 in a pair, (0, -log 3, -log 9) in the ranking."""
    batch = build_batch(dpo_config(), vlm, rows[:2], [None, None])
    three = math.log(3)
    logps_NT = torch.zeros_like(batch.token_weights_NT)
    logps_NT[:, 0] = torch.tensor([three, 0.0, 0.0, -three, -2 * three])
    config, counts = dpo_config(beta=1.0), Counts(rows=2.0, image_pairs=0.0, best_tokens=10.0, tokens=20.0)
    loss, sums = preference_loss(config, batch, [0, 1], logps_NT, torch.zeros(5), counts)
    # -log 3/4 for the pair; the mean of -log 3/4 and -log 9/10 for the ranking
    assert loss.item() == pytest.approx((math.log(4 / 3) + (math.log(4 / 3) + math.log(10 / 9)) / 2) / 2)
    metrics = mean_metrics(sums, counts)
    assert metrics["rewards/accuracies"] == 1.0 and metrics["rewards/margins"] == pytest.approx((three + 1.5 * three) / 2)
    assert metrics["rewards/chosen"] == pytest.approx(three / 2) and metrics["logps/rejected"] == pytest.approx(-0.75 * three)
    # The reference moves everything by the same amount: only differences count.
    moved, _ = preference_loss(config, batch, [0, 1], logps_NT, torch.full((5,), -7.0), counts)
    assert moved.item() == pytest.approx(loss.item(), rel=1e-5)
    # sft: minus the log-probs of the best answers, over their tokens
    with_sft, _ = preference_loss(
        dataclasses.replace(config, loss_type="sigmoid,sft", loss_weights="1,2"), batch, [0, 1], logps_NT, torch.zeros(5), counts
    )
    assert with_sft.item() - loss.item() == pytest.approx(-2 * three / 10, rel=1e-5)


@pytest.mark.parametrize("settings", [{}, {"image_pairs": "crop", "anchor_coefficient": 1.0, "changed_token_weight": 3.0}])
def test_gradients_do_not_depend_on_micro_batches_or_shared_prompts(policy, rows, settings):
    """Small micro-batches, and a prompt per answer on the naive path, give the same step."""
    config = dpo_config(loss_type="sigmoid,sft", **settings)
    rows = [rows[0], rows[2]] if settings else rows
    other_images = [rejected_images(config, rows, row) for row in rows]
    metrics, gradient = gradients_of(config, policy, rows, other_images)
    budget, policy.vlm.budget.max_tokens = policy.vlm.budget.max_tokens, 60
    small_metrics, small_gradient = gradients_of(config, policy, rows, other_images)
    policy.vlm.budget.max_tokens = budget
    policy.vlm.engine = dataclasses.replace(policy.vlm.engine, share_prefix="off")
    naive_metrics, naive_gradient = gradients_of(config, policy, rows, other_images)
    for other_metrics, other_gradient in ((small_metrics, small_gradient), (naive_metrics, naive_gradient)):
        assert other_metrics == pytest.approx(metrics, abs=1e-4)
        assert float((other_gradient - gradient).abs().max()) < 1e-4 * float(gradient.abs().max())


def test_gradients_are_those_of_log_probs_one_by_one(policy, rows):
    """Each answer's coefficient from its own log-prob, without any sharing of the batch."""
    config = dpo_config()
    _, gradient = gradients_of(config, policy, [rows[0]], [None])
    batch = build_batch(config, policy.vlm, [rows[0]], [None])
    gap = sum(
        sign * (sequence_logps(role, batch.completions)[n]) * role_sign
        for role, role_sign in ((policy, 1), (Role(policy.adapters, None), -1))
        for n, sign in ((0, 1), (1, -1))
    )
    coefficient = -config.beta * torch.sigmoid(-config.beta * gap)  # of the better answer's log-prob
    directions = []
    for n in (0, 1):
        alone = dataclasses.replace(rows[0], answers=(rows[0].answers[n], "."))
        sft = dpo_config(loss_type="sft", anchor_coefficient=0.0)
        alone_batch = build_batch(sft, policy.vlm, [alone], [None])
        _, nll_gradient = gradients_of(sft, policy, [alone], [None])
        directions.append(-nll_gradient * float(alone_batch.completions.mask_NT[0].sum()))
    expected = coefficient * (directions[0] - directions[1])
    assert float((gradient - expected).abs().max()) < 1e-4 * float(expected.abs().max())


# ---- image pairs ---------------------------------------------------------------------------------


def test_crops_have_the_size_of_the_picture_and_are_always_the_same(pairs):
    config = dpo_config(image_pairs="crop")
    (crop,), (again,) = (rejected_images(config, pairs, pairs[0]) for _ in range(2))
    picture = open_image(pairs[0].images[0])
    assert open_image(crop).size == picture.size and crop.data == again.data and crop.key != pairs[0].images[0].key
    (other_seed,) = rejected_images(dataclasses.replace(config, seed=1), pairs, pairs[0])
    assert other_seed.data != crop.data


def test_other_pictures_are_those_of_another_row(pairs):
    config = dpo_config(image_pairs="other")
    for row in pairs:
        images = rejected_images(config, pairs, row)
        assert images != row.images and images in [other.images for other in pairs]
    assert rejected_images(config, pairs[:1], pairs[0]) is None  # there is no other
    assert rejected_images(dpo_config(), pairs, pairs[0]) is None
    assert rejected_images(config, pairs, dataclasses.replace(pairs[0], images=())) is None
