"""Print a config with its bases resolved: python tools/print_config.py CONFIG [--cfg-options ...]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdet.cli.config import main
from mmdet.config.errors import run_main

if __name__ == '__main__':
    run_main(main)
