"""`mmrlhf env` reports the versions of installed packages, and which are missing."""

import mmrlhf
from mmrlhf.cli import main
from mmrlhf.commands import env


def test_env_prints_versions_and_missing_packages(capsys, monkeypatch):
    monkeypatch.setattr(env, "REPORTED_PACKAGES", ("pillow", "no-such-package"))
    assert main(["env"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["mmrlhf"] == mmrlhf.__version__ and rows["pillow"][0].isdigit()
    assert rows["no-such-package"] == "not installed" and {"python", "cuda", "cpus"} <= rows.keys()
