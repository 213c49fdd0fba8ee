"""Train a detector: python tools/train.py CONFIG [--gpus N] [--resume] ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdet.cli.train import main
from mmdet.config.errors import run_main

if __name__ == '__main__':
    run_main(main)
