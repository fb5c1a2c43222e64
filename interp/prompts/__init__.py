"""How do a user's own prompts become sequences? Files of prompts, windows of a text, ready-made examples.

- `lines`: what a line of a file may hold; `spans`: which tokens a named part of a text covers; `rows`: a line as ids.
- `examples`: indirect object identification, greater-than, false demonstrations; `windows`: a text.
- `tasks`: small classification tasks; `demonstrations`: prompts that demonstrate one, with true or false labels.
- `sets`: what `--prompts` takes; each prompt's tokens as a table; `needs`: which of them an experiment can take.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.prompts.examples import (
        blocks as blocks,
        false_demonstrations as false_demonstrations,
        greater_than as greater_than,
        ioi as ioi,
    )
    from interp.prompts.needs import check_needs as check_needs, needs_of as needs_of
    from interp.prompts.sets import (
        PromptSet as PromptSet,
        digest as digest,
        prompt_set as prompt_set,
        prompt_sets as prompt_sets,
        spec_texts as spec_texts,
        token_table as token_table,
    )
    from interp.prompts.tasks import Task as Task, tasks_of as tasks_of

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "examples": ["blocks", "false_demonstrations", "greater_than", "ioi"],
        "needs": ["check_needs", "needs_of"],
        "sets": ["PromptSet", "digest", "prompt_set", "prompt_sets", "spec_texts", "token_table"],
        "tasks": ["Task", "tasks_of"],
    },
)
