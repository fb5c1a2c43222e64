"""How do several models, or the checkpoints of one, compare side by side?"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from interp.compare.comparison import compare as compare
    from interp.compare.surveyed import compare_survey as compare_survey, is_survey as is_survey

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"comparison": ["compare"], "surveyed": ["compare_survey", "is_survey"]}
)
