"""Evaluate a checkpoint: python tools/test.py CONFIG CHECKPOINT [--gpus N] [--eval bbox segm] ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdet.cli.test import main
from mmdet.config.errors import run_main

if __name__ == '__main__':
    run_main(main)
