"""Look at the data as the network sees it: python tools/browse.py CONFIG [--split train|val|test] [--number N]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdet.cli.browse import main
from mmdet.config.errors import run_main

if __name__ == '__main__':
    run_main(main)
