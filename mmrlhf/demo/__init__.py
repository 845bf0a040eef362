"""The demo: the full pipeline on synthetic scenes, and the tiny VLM from which it starts."""

from mmrlhf.demo.pipeline import demo

__all__ = ["demo"]
