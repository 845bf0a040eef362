"""Who checks a claim: a verdict with its evidence. `facts` asks what is known of the picture, `clip` an open_clip model, `asking` the
vision-language model itself; `combined` lets the first that knows decide.

In the order of their imports: `facts`, `verifier`, `sentences`, `combined`, `clip`, `asking`. The last two bring torch: they are
imported by their full names, so that a command that needs neither starts at once.
"""

from mmrlhf.verifiers.base import AnswerClaims, Verifier
from mmrlhf.verifiers.facts import verify_against_facts

__all__ = ["AnswerClaims", "Verifier", "verify_against_facts"]
