"""What would repair copying, stage by stage? Patterns carried over, content put at a token's address, rows refitted, writes removed.

A *glitch* run is on a pool's sequences, its *paired* run on the same sequences with ordinary tokens in their place. What is read is
the tested token where context can tell it; `Places` lists these. All reading is done on the final residual stream behind the
last norm, x, as the unembedding sees it; logits are x . u_t + b_t.

- `near_duplicates`: which tokens does the model hardly tell apart, by their rows?
- `ends`: x, and what each component writes towards given rows, of one run, with attention of another if wanted.
- `Reader`: rows for a pool's tokens, fitted on other sequences; their own where these are as good.
- `readdressed`: x with what it says of one token said of another.
- `shapley`: how much each of several repairs is worth, whatever the order.
- `Study`: all of these on a pool, in every combination.
"""

from interp.stages.knowledge import retrieval
from interp.stages.places import Ends, Places, components, ends
from interp.stages.reader import Reader
from interp.stages.reading import read, said
from interp.stages.study import QUANTITIES, REPAIRS, ROLES, Study, named, subsets
from interp.stages.suppression import written_against
from interp.stages.unembedding import Unembedding, near_duplicates, readdressed
from interp.stages.worth import shapley

__all__ = [
    "QUANTITIES", "REPAIRS", "ROLES", "Ends", "Places", "Reader", "Study", "Unembedding", "components", "ends", "named",
    "near_duplicates", "read", "readdressed", "retrieval", "said", "shapley", "subsets", "written_against",
]  # fmt: skip
