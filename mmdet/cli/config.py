"""Print a config with its bases resolved."""

from collections.abc import Sequence

from mmdet.cli.parser import Parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser('Print a config with its bases resolved.', [
        'cbn/mask_rcnn_r50_fpn_cbn_buffer3_burnin8_1x',
        'my_config.py --cfg-options model.backbone.depth=101',
    ])
    parser.add_config_arguments('model.backbone.depth=101')
    args = parser.parse_args(argv)

    from mmdet.config.load import check_types, load_config

    cfg = load_config(args.config, args.cfg_options)
    check_types(cfg)
    print(cfg.pretty_text)
