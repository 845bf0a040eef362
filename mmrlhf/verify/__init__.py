"""Who checks a claim: a verdict with its evidence. `facts` is the verifier that asks what is known of the picture."""

from mmrlhf.verify.facts import by_facts

__all__ = ["by_facts"]
