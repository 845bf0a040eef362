"""Losses of the tiny VLM's auxiliary heads."""

import math

import pytest
import torch

from mmrlhf.demo import tiny_vlm, tiny_vlm_training
from mmrlhf.demo.tiny_vlm_data import OBJECT_LABEL_SIZES
from mmrlhf.demo.tiny_vlm_training import claim_loss, object_loss
from mmrlhf.records import InputError

NAN = float("nan")


def object_logits(predicted):
    """Return logits of ln 3 for each predicted class and 0 for the others."""
    logits = torch.zeros(1, sum(OBJECT_LABEL_SIZES))
    first = 0
    for size, label in zip(OBJECT_LABEL_SIZES, predicted, strict=True):
        logits[0, first + label] = math.log(3)
        first += size
    return logits


def test_object_loss_is_the_mean_over_labels_that_are_given():
    logits = object_logits([2, 0, 1, 4, 9])
    loss, accuracy = object_loss(logits, torch.tensor([[2, -100, 0, -100, -100]]))
    colours, patterns = OBJECT_LABEL_SIZES[0], OBJECT_LABEL_SIZES[2]
    # -ln(3 / (n - 1 + 3)) for the right one, -ln(1 / (n - 1 + 3)) for the wrong one
    expected = (math.log((colours + 2) / 3) + math.log(patterns + 2)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5) and accuracy == 0.5


def test_object_loss_without_labels_is_zero():
    loss, accuracy = object_loss(object_logits([0] * 5), torch.full((1, 5), -100))
    assert (loss.item(), accuracy) == (0.0, 0.0)
    assert object_loss(torch.zeros(0, sum(OBJECT_LABEL_SIZES)), torch.zeros(0, 5, dtype=torch.long))[0].item() == 0.0


def test_claim_loss_weighs_true_and_false_claims_alike():
    # three true claims at p = 0.8, one false at p = 0.6
    logits = torch.tensor([[math.log(4), math.log(4), NAN, NAN], [math.log(4), math.log(1.5), NAN, NAN]])
    labels = torch.tensor([[1.0, 1.0, NAN, NAN], [1.0, 0.0, NAN, NAN]])
    loss, recall_true, recall_false = claim_loss(logits, labels)
    assert loss.item() == pytest.approx((-math.log(0.8) - math.log(0.4)) / 2, rel=1e-5)
    assert (recall_true, recall_false) == (1.0, 0.0)


def test_claim_loss_of_true_claims_alone_is_their_mean_and_of_none_zero():
    logits, labels = torch.zeros(2, 4), torch.full((2, 4), NAN)
    assert claim_loss(logits, labels)[0].item() == 0.0
    labels[0, 1] = 1.0
    assert claim_loss(logits, labels)[0].item() == pytest.approx(math.log(2))


def test_mirrored_images_keep_the_labels_of_what_is_in_each_cell(vlm, monkeypatch):
    monkeypatch.setattr(tiny_vlm_training, "_preprocess", lambda processor, images: images)
    cell_numbers = torch.arange(9, dtype=torch.uint8).view(3, 3)
    pixels = cell_numbers.repeat_interleave(32, 0).repeat_interleave(32, 1)[None, :, :, None].expand(40, 96, 96, 3)
    targets = torch.arange(9)[None, :, None].expand(40, 9, 4)
    torch.manual_seed(0)
    ((images, labels),) = next(tiny_vlm_training._tower_batches(vlm.processor, pixels, targets, 1, 40))
    centres = images[:, 16::32, 16::32, 0].flatten(1)
    assert (labels[..., :4] == centres[..., None]).all() and (labels[..., 4] == torch.arange(9)).all()
    mirrored = centres[:, 0] == 2
    assert centres[mirrored].tolist() == [[2, 1, 0, 5, 4, 3, 8, 7, 6]] * int(mirrored.sum()) and 10 < mirrored.sum() < 30


def test_train_tiny_vlm_refuses_its_folder_before_it_draws_images(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(tiny_vlm, "render_images", lambda *_: pytest.fail("drew images"))
    with pytest.raises(InputError, match=r"output_dir .*file cannot be written"):
        tiny_vlm.train_tiny_vlm(str(tmp_path / "file"))
