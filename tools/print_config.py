"""Print a config with its bases resolved: python tools/print_config.py CONFIG [--cfg-options ...]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdet.cli.parser import Parser
from mmdet.config.errors import run_main


def main() -> None:
    parser = Parser('Print a config with its bases resolved.')
    parser.add_config_arguments('model.backbone.depth=101')
    args = parser.parse_args()

    from mmdet.config.load import check_types, load_config

    cfg = load_config(args.config, args.cfg_options)
    check_types(cfg)
    print(cfg.pretty_text)


if __name__ == '__main__':
    run_main(main)
