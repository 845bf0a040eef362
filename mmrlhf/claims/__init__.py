"""What an answer says about the picture: visual claims with their places in the text.

Each module imports only those before it: `grammar`, `lexicon`, `chair` (CHAIR's own matching, on the same lexicon), `tagging`, `choosing`, `phrases`, `made`,
`predicates`, `places`, `extraction`.
"""

from mmrlhf.claims.chair import Mention, chair, nodes
from mmrlhf.claims.extraction import claims
from mmrlhf.claims.lexicon import Lexicon, lexicon

VERSION = 1
"""Of what is extracted: a file of claims that another version began is not continued."""

__all__ = ["VERSION", "Lexicon", "Mention", "chair", "claims", "lexicon", "nodes"]
