"""The only place for work-arounds of mmengine's and torch's versions; each names its reason.

- `errors`: a user's mistake ends in one clear line;
- `config`: loading a config with errors a person can act on;
- `checkpoint`: safe and atomic checkpoints, pretrained weights;
- `launch`: processes on GPUs and without;
- `seeding`: randomness that survives resuming, any number of workers and processes;
- `run`: the Runner with all of these.
"""

from .checkpoint import fit_weights, load_pretrained, load_weights, read_checkpoint, write_atomically
from .config import check_types, load_config
from .errors import Interrupted, UserError, run_main, suggest

__all__ = [
    'Interrupted', 'UserError', 'check_types', 'fit_weights', 'load_config', 'load_pretrained', 'load_weights',
    'read_checkpoint', 'run_main', 'suggest', 'write_atomically',
]  # fmt: skip
