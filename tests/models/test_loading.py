"""`load` refuses paths without a checkpoint; tests/test_refusals.py covers damaged checkpoints."""

import pytest

from mmrlhf.models.loading import load
from mmrlhf.records import InputError


def test_load_missing_model_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="no such directory"):
        load(str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"holds no config\.json"):
        load(str(tmp_path))
