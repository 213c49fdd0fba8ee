"""Print a config with its bases resolved: python tools/print_config.py CONFIG [--cfg-options ...]"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdet.runtime.errors import run_main  # noqa: E402


def main() -> None:
    from mmengine.config import DictAction

    from mmdet.runtime import check_types, load_config

    parser = argparse.ArgumentParser(description='Print a config with its bases resolved.')
    parser.add_argument('config')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, metavar='KEY=VALUE')
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options)
    check_types(cfg)
    print(cfg.pretty_text)


if __name__ == '__main__':
    run_main(main)
