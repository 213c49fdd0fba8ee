"""Detect in images of your own: python tools/predict.py CONFIG CHECKPOINT IMAGE_OR_FOLDER... [--out-dir DIR]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdet.cli.predict import main
from mmdet.config.errors import run_main

if __name__ == '__main__':
    run_main(main)
