"""The demo: the full pipeline on synthetic scenes, and the tiny VLM that it starts from."""

from mmrlhf.demo.pipeline import demo

__all__ = ["demo"]
