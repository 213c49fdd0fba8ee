"""Weights alone, named by their hash: python tools/publish_model.py IN OUT.pth -> OUT-1a2b3c4d.pth"""

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mmdet.cli.parser import Parser
from mmdet.config.errors import UserError, run_main


def main() -> None:
    parser = Parser('Strip optimizer, history and machine names from a checkpoint.')
    parser.add_argument('input', metavar='IN')
    parser.add_argument('output', metavar='OUT', help='the first 8 digits of the SHA-256 join this name')
    args = parser.parse_args()
    import torch

    from mmdet.checkpoints import read_checkpoint
    from mmdet.checkpoints.plain import marked, plain_meta, to_bytes
    from mmdet.config.output import check_writable, write_atomically

    if args.output.endswith('/'):
        raise UserError(f'{args.output} is a folder; the name of a file is needed')
    checkpoint = read_checkpoint(args.input)
    state = checkpoint.weights
    if not state:
        raise UserError(f'{args.input} holds no weights')
    state = {key: value.contiguous() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
    meta = plain_meta(checkpoint.meta)
    data = to_bytes(dict(meta=marked(meta) if checkpoint.saved_here else meta, state_dict=state))
    path = f'{args.output.removesuffix(".pth")}-{hashlib.sha256(data).hexdigest()[:8]}.pth'
    check_writable(Path(path).parent, 'OUT')
    write_atomically(path, data)
    before = Path(args.input).stat().st_size
    print(f'wrote {path}: {len(state)} arrays, {len(data) / 2**20:.1f} MiB of {before / 2**20:.1f}')


if __name__ == '__main__':
    run_main(main)
