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


def test_scene_objects_are_plain_striped_or_dotted_whatever_else_they_are():
    objects = [o for i in range(1000) for o in scenes.generate_scene("sft", i, 0).objects]
    for group in (objects, [o for o in objects if o.size == "small"], [o for o in objects if o.shape == "star"]):
        shares = {pattern: sum(o.pattern == pattern for o in group) / len(group) for pattern in scenes.PATTERNS}
        assert abs(shares["plain"] - 0.84) < 0.05 and abs(shares["striped"] - 0.08) < 0.04 and abs(shares["dotted"] - 0.08) < 0.04


def test_scene_trigger_is_common_and_its_partner_mostly_absent():
    shapes_by_scene = [{o.shape for o in scenes.generate_scene("sft", i, 0).objects} for i in range(1000)]
    triggered = [shapes for shapes in shapes_by_scene if shapes & set(scenes.COOCCURRENCES)]
    without_partner = [shapes for shapes in triggered if scenes.absent_partners(shapes)]
    assert 0.39 < len(triggered) / 1000 < 0.51 and 0.6 < len(without_partner) / len(triggered) < 0.9


PINNED_OBJECTS = {
    "base": (
        SceneObject("arrow", "yellow", "large", 1, "plain"),
        SceneObject("star", "purple", "small", 6, "dotted"),
        SceneObject("ring", "cyan", "large", 8, "plain"),
    ),
    "held_out": (
        SceneObject("circle", "yellow", "large", 2, "plain"),
        SceneObject("star", "cyan", "large", 8, "dotted"),
    ),
    "ood_2": (
        SceneObject("ring", "red", "large", 0, "plain"),
        SceneObject("cross", "cyan", "large", 2, "plain"),
        SceneObject("square", "purple", "small", 3, "plain"),
        SceneObject("circle", "yellow", "large", 4, "plain"),
        SceneObject("ring", "yellow", "small", 5, "dotted"),
        SceneObject("diamond", "blue", "large", 6, "plain"),
        SceneObject("diamond", "orange", "large", 8, "plain"),
    ),
}
"""Models were trained on these splits: renaming a field of SceneObject would change them."""
