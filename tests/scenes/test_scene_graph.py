"""Scenes follow from their seed, and no two splits share one."""

from mmrlhf import scenes
from mmrlhf.scenes import SceneObject


def test_generate_scene_is_determined_by_its_seed():
    a, b = scenes.generate_scene("rl", 3, 0), scenes.generate_scene("rl", 3, 0)
    assert a == b and a.image_source() == b.image_source()
    assert scenes.generate_scene("rl", 3, 1) != a and scenes.generate_scene("rl", 4, 0) != a


def test_generate_scene_keeps_the_pinned_scenes_of_each_split():
    assert {split: scenes.generate_scene(split, 0, 0).objects for split in ("base", "held_out", "ood_2")} == PINNED_OBJECTS


def test_scene_splits_share_no_scene():
    split_by_objects = {}
    for split in scenes.SPLIT_BUCKETS:
        for i in range(150):
            scene = scenes.generate_scene(split, i, 0)
            assert split_by_objects.setdefault(scene.objects, split) == split
            pairings = {(o.shape, o.colour) for o in scene.objects}
            assert bool(pairings & scenes.UNSEEN_PAIRINGS) == (split == "ood_1")
            assert (len(scene.objects) > 5) == (split == "ood_2")


def test_scene_trigger_is_common_and_its_partner_mostly_absent():
    shapes_by_scene = [{o.shape for o in scenes.generate_scene("sft", i, 0).objects} for i in range(1000)]
    triggered = [shapes for shapes in shapes_by_scene if shapes & set(scenes.COOCCURRENCES)]
    without_partner = [shapes for shapes in triggered if scenes.absent_partners(shapes)]
    assert 0.39 < len(triggered) / 1000 < 0.51 and 0.6 < len(without_partner) / len(triggered) < 0.9


PINNED_OBJECTS = {
    "base": (
        SceneObject("circle", "yellow", "large", 0),
        SceneObject("moon", "purple", "large", 4),
        SceneObject("star", "pink", "large", 5),
    ),
    "held_out": (
        SceneObject("triangle", "green", "small", 0),
        SceneObject("cross", "red", "small", 1),
        SceneObject("diamond", "blue", "large", 2),
        SceneObject("moon", "orange", "large", 3),
        SceneObject("ring", "orange", "large", 4),
    ),
    "ood_2": (
        SceneObject("ring", "red", "large", 0),
        SceneObject("cross", "blue", "large", 2),
        SceneObject("square", "yellow", "large", 3),
        SceneObject("circle", "green", "small", 4),
        SceneObject("ring", "purple", "large", 5),
        SceneObject("diamond", "green", "large", 6),
        SceneObject("diamond", "green", "large", 8),
    ),
}
"""Models were trained on these splits: renaming a field of SceneObject would change them."""
