"""`mmrlhf env`: print versions and devices, for a bug report."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import mmrlhf

REPORTED_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "open_clip_torch", "pillow")


def print_environment() -> None:
    """Print the versions of the package and its dependencies, and the devices."""
    rows = {"mmrlhf": mmrlhf.__version__, "python": f"{platform.python_version()}, {platform.platform()}"}
    for package in REPORTED_PACKAGES:
        try:
            rows[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            rows[package] = "not installed"
    rows["cuda"] = _describe_cuda()
    rows["cpus"] = str(os.cpu_count())
    print("\n".join(f"{name:<16} {value}" for name, value in rows.items()))


def _describe_cuda() -> str:
    try:
        import torch
    except (ImportError, OSError) as error:  # the report is most useful when torch does not load
        return f"unknown, torch does not load: {error}"
    if not torch.cuda.is_available():
        return "not available"
    devices = (torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return f"{torch.version.cuda}: {', '.join(devices)}"
