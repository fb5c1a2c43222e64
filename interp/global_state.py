"""How are models loaded and saved quietly, without changing the global state of torch or transformers?"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def preserve_global_state() -> Iterator[None]:
    """Restore the state of torch, transformers and warnings on exit, and hide their progress bars.

    Importing transformer_lens raises transformers' verbosity and adds a warnings filter; booting draws random numbers.
    """
    import torch
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    with warnings.catch_warnings(), torch.random.fork_rng():
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            torch.set_grad_enabled(grad)
            torch.set_default_dtype(dtype)
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
