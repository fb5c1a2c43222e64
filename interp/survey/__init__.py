"""How are many models asked many things: on all devices of a machine, or on any cluster that runs Dask?"""

from importlib.util import find_spec
from typing import TYPE_CHECKING

import lazy_loader

from interp.errors import InterpError

if TYPE_CHECKING:
    from interp.survey.costs import priced
    from interp.survey.driver import Survey, survey
    from interp.survey.spec import Spec, read_spec

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"costs": ["priced"], "driver": ["Survey", "survey"], "spec": ["Spec", "read_spec"]},
)


def require_dask() -> None:
    """Raise `InterpError` where what a survey is run by is not installed."""
    missing = next((name for name in ("distributed", "cryptography") if find_spec(name) is None), None)
    if missing is not None:
        raise InterpError(f"a survey is run by Dask, and {missing} is not installed: pip install 'interp[survey]'")
