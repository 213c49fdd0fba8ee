"""Print a config with its bases resolved, in today's vocabulary whatever version it was written for."""

from collections.abc import Sequence
from pathlib import Path

from mmdet.cli.parser import Parser
from mmdet.config.errors import UserError
from mmdet.config.output import check_writable, write_atomically


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser("Print a config with its bases resolved; one of mmdetection 0.x to 2.x in today's vocabulary.", [
        'cbn/mask_rcnn_r50_fpn_cbn_buffer3_burnin8_1x',
        'my_config.py --cfg-options model.backbone.depth=101',
    ])
    parser.add_config_arguments('model.backbone.depth=101')
    parser.add_argument('--out', metavar='FILE.py', help='write it into this file instead')
    args = parser.parse_args(argv)

    from mmdet.checkpoints import config_of, is_checkpoint, load_pretrained
    from mmdet.config.load import check_types, load_config

    if is_checkpoint(args.config):
        cfg = config_of(load_pretrained(args.config), args.cfg_options)
    else:
        cfg = load_config(args.config, args.cfg_options)
    check_types(cfg)
    if not args.out:
        print(cfg.pretty_text)
        return
    if Path(args.out).exists() or not args.out.endswith('.py'):
        raise UserError(f'--out {args.out}: a new file that ends with .py is needed')
    check_writable(Path(args.out).parent, '--out')
    write_atomically(args.out, cfg.pretty_text.encode())
    print(f'wrote {args.out}')
