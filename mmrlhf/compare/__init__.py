"""`mmrlhf compare RUN_A RUN_B ...`: are two models different, by how much, and at what price?

`runs` finds results, reads them and refuses what cannot be compared; `paired` compares two on the pictures that both have answered; `diversity`
says whether truth was paid for with sameness; `written` writes Markdown, JSON and a page. No torch.
"""

from mmrlhf.compare.written import compare

__all__ = ["compare"]
