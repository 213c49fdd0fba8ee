"""Write a config that fits a data set and this machine."""

import argparse
import os
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

from mmdet.cli.parser import Parser
from mmdet.config.errors import UserError, at_most, suggest
from mmdet.engine.launch import cpu_count

# detector: recipe that it builds on, and the parts of the model that take a norm
_DETECTORS = {
    'faster_rcnn': ('cbn/faster_rcnn_r50_fpn_1x', ('neck', 'roi_head.bbox_head')),
    'mask_rcnn': ('cbn/mask_rcnn_r50_fpn_1x', ('neck', 'roi_head.bbox_head', 'roi_head.mask_head')),
    'retinanet': ('retinanet/retinanet_r50_fpn_1x', ('neck', 'bbox_head')),
    'cascade_rcnn': ('cascade_rcnn/cascade_rcnn_r50_fpn_1x', ('neck',)),
    'cascade_mask_rcnn': ('cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x', ('neck', 'roi_head.mask_head')),
}
_DEPTHS = (18, 34, 50, 101)
MODELS = tuple(f'{name}_r{depth}' for name in _DETECTORS for depth in _DEPTHS)
_NORMS = dict(
    none='None', bn="dict(type='BN')", syncbn="dict(type='SyncBN')", gn="dict(type='GN', num_groups=32)",
    cbn="dict(type='CBN', buffer_num=3, full_gradient=True)",
)  # fmt: skip
_WHY_NORM = dict(
    none='no norm in neck and heads: the baseline; needs pretrained weights',
    bn='BatchNorm: from about 8 images per process; in neck and heads to be tried from 2',
    syncbn='BatchNorm over all processes: for large batches in sum',
    gn='GroupNorm: does not look at the batch; the one to start with (projects/norm_study)',
    cbn='Cross-Iteration BatchNorm: statistics of the last 4 iterations, for small batches, with their full gradient',
)  # fmt: skip


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        'Write a short config for a data set in COCO\'s format: classes, image size, batch size, learning rate and '
        'epochs that fit the data and this machine, each with its reason.',
        ['data/photos', 'data/photos --model mask_rcnn_r50 --norm cbn --out my_config.py'],
    )
    parser.add_argument('source', metavar='SRC', help='folder that `mmdet convert` wrote, or one with COCO files')
    parser.add_argument('--model', metavar='MODEL',
                        help=f'{{{",".join(_DETECTORS)}}}_r{{{",".join(map(str, _DEPTHS))}}} (default: mask_rcnn_r50 '
                        'where objects have masks, else faster_rcnn_r50)')
    parser.add_argument('--norm', choices=tuple(_NORMS), default='gn', help='of neck and heads (default: %(default)s)')
    parser.add_argument('--from-scratch', action='store_true',
                        help='start from random weights; by default those of ImageNet are downloaded, which train far '
                        'better')
    parser.add_argument('--out', metavar='FILE.py', help='default: NAME_OF_SRC.py')
    return parser.parse_args(argv)


class Plan:
    """What fits a data set and a machine.

    Args:
        content: the training set, COCO's format.
        gpus: memory of each in GB; empty for a CPU.
        cores: of the CPU.
        from_scratch: no pretrained weights.
        masks: whether the model predicts masks.
    """

    def __init__(self, content: dict, gpus: Sequence[float], cores: int, from_scratch: bool, masks: bool) -> None:
        sides = sorted((min(x['width'], x['height']), max(x['width'], x['height'])) for x in content['images'])
        short, long = sides[len(sides) // 2]
        with_objects = {x['image_id'] for x in content['annotations'] if not x.get('iscrowd')}
        self.images = len(with_objects)
        self.gpus, self.cpu = len(gpus), not gpus
        largest = (640, 512) if self.cpu else (1333, 800)  # long, short side
        factor = min(largest[0] / long, largest[1] / short, 2)
        extents = sorted((x['bbox'][2] * x['bbox'][3]) ** 0.5 for x in content['annotations']) or [long]
        small = extents[len(extents) // 10]
        if small >= 32 and factor > 1:  # nothing to gain: even small objects cover an anchor
            factor = 1
        self.scale = tuple(max(32, round(side * factor / 32) * 32) for side in (long, short))
        self.why_scale = (f'the median image is {long} x {short}; one object in ten is under {small:.0f} pixels wide, '
                          f'{small * factor:.0f} at this size (the smallest anchor is 32)')
        if self.cpu:
            self.batch, self.why_batch = 2, 'for a CPU'
        else:
            per_image = (5 if masks else 4) * (self.scale[0] * self.scale[1]) / (1333 * 800)  # GB, measured generously
            self.batch = max(1, min(8, int((min(gpus) - 2) // per_image)))
            self.why_batch = f'of {min(gpus):.0f} GB a GPU; some {per_image:.1f} GB an image'
        self.batch = max(1, min(self.batch, self.images // max(self.gpus, 1) or 1))
        self.total = self.batch * max(self.gpus, 1)
        self.workers = max(1, min(4, cores // max(self.gpus, 1) - self.cpu))
        seen = 3000 if self.cpu else 40_000  # images in the whole training
        self.epochs = min(max(round(seen / self.images), 12), 100)
        self.iterations = max(1, self.images // self.total)  # of an epoch
        self.why_epochs = (f'{self.images} images with objects, {self.iterations} iterations an epoch: '
                           f'{self.images * self.epochs:,} images are seen in all'
                           + (', what a CPU can do in hours; longer is better' if self.cpu else ''))
        self.steps = [max(1, round(self.epochs * 2 / 3)), max(2, round(self.epochs * 11 / 12))]
        self.warmup = max(1, min(500, self.iterations * self.epochs // 10))
        self.interval = max(1, self.epochs // 12)
        self.from_scratch = from_scratch


def machine() -> tuple[list[float], int]:
    """Memory of each GPU in GB, and how many CPU cores this process may use."""
    import torch

    count = torch.cuda.device_count()
    gpus = [torch.cuda.get_device_properties(i).total_memory / 2**30 for i in range(count)]
    return gpus, cpu_count()


def config_text(detector: str, depth: int, norm: str, data: dict, plan: Plan, source: str) -> str:
    """The config, with a reason in a comment for each number."""
    base, parts = _DETECTORS[detector]
    lr = 0.01 if detector == 'retinanet' else 0.02
    if plan.from_scratch:
        rate = round(0.001 * (plan.total / 4) ** 0.5, 5)
        optimizer = f"dict(_delete_=True, type='AdamW', lr={rate}, weight_decay=0.05)"
        why_rate = 'AdamW, which is patient with random weights'
    else:
        optimizer = f'dict(lr={lr * plan.total / 16:g})'
        why_rate = f'{lr} for 16 images a step, in proportion; SGD'
    lines = [
        f'# Written by: mmdet init {source}. All of it may be changed; `mmdet config` shows what it becomes.',
        f"_base_ = 'mmdet::{base}.py'",
        '',
        '# Data: COCO files below root. Heads get as many outputs as there are classes.',
        f'# Scale: {plan.why_scale}.',
        f'# Batch: per process, {plan.why_batch}.',
        'data = dict(',
        *(f'    {key}={value!r},' for key, value in data.items()),
        f'    scale={plan.scale},',
        f'    batch_size={plan.batch},',
        f'    num_workers={plan.workers},',
        ')',
        '',
        f'# {_WHY_NORM[norm]}.',
        f'norm_cfg = {_NORMS[norm]}',
        'model = dict(',
        *_backbone(depth, plan.from_scratch),
        *_norms(parts, depth),
        ')',
        '' if plan.from_scratch else
        "# load_from = 'detector_trained_on_coco.pth'   # weights of a whole detector matter most on a small data set",
        *([] if plan.from_scratch else ['']),
        f'# Epochs: {plan.why_epochs}.',
        f"train_cfg = dict(type='EpochBasedTrainLoop', max_epochs={plan.epochs}, val_interval={plan.interval})",
        'param_scheduler = [  # warm-up, then a tenth of the rate at two thirds and at eleven twelfths',
        f"    dict(type='LinearLR', start_factor=1 / 3, by_epoch=False, begin=0, end={plan.warmup}),",
        f"    dict(type='MultiStepLR', by_epoch=True, begin=0, end={plan.epochs}, milestones={plan.steps}, gamma=0.1),",
        ']',
        f'# Learning rate: {why_rate}. --auto-scale-lr fits it to another number of GPUs.',
        f'optim_wrapper = dict(optimizer={optimizer})',
        f'auto_scale_lr = dict(base_batch_size={plan.total})',
        f"default_hooks = dict(logger=dict(interval={min(50, max(1, plan.iterations // 3))}))",
    ]
    return ''.join(f'{part}\n' for line in lines for part in _wrapped(line))


def _wrapped(line: str) -> list[str]:
    """A comment, or a line of a dict, as lines of at most 120 characters."""
    if len(line) <= 120 or line.startswith('norm_cfg'):
        return [line]
    indent = '# ' if line.startswith('#') else '        '
    if indent != '# ':  # names stay whole
        line = re.sub(r""" "[^"]*"|'[^']*' """.strip(), lambda name: name[0].replace(' ', '\0'), line)
    wrapped = textwrap.wrap(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [part.replace('\0', ' ') for part in wrapped]


def _backbone(depth: int, from_scratch: bool) -> list[str]:
    options = [] if depth == 50 else [f'depth={depth}']
    if from_scratch:
        options += ['init_cfg=None', 'frozen_stages=-1', 'norm_eval=False', "norm_cfg=dict(type='BN')"]
    elif depth != 50:
        options.append(f"init_cfg=dict(checkpoint='torchvision://resnet{depth}')")
    return [f'    backbone=dict({", ".join(options)}),'] if options else []


def _norms(parts: Sequence[str], depth: int) -> list[str]:
    channels = '' if depth >= 50 else 'in_channels=[64, 128, 256, 512], '
    lines = [f'    neck=dict({channels}norm_cfg=norm_cfg),']
    heads = [part.removeprefix('roi_head.') for part in parts if part.startswith('roi_head.')]
    if heads:
        lines.append(f'    roi_head=dict({", ".join(f"{head}=dict(norm_cfg=norm_cfg)" for head in heads)}),')
    if 'bbox_head' in parts:
        lines.append('    bbox_head=dict(norm_cfg=norm_cfg),')
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    source = Path(args.source)

    from mmdet.config.output import check_writable, write_atomically
    from mmdet.datasets.formats.coco import find_splits, image_folder
    from mmdet.structures.coco_file import load_coco_file

    splits = find_splits(source)
    content = load_coco_file(str(splits['train']))
    objects = [x for x in content['annotations'] if not x.get('iscrowd')]
    if not objects:
        raise UserError(f'{splits["train"]} has no object to train on')
    with_masks = sum(bool(x.get('segmentation')) for x in objects)
    model = args.model or ('mask_rcnn_r50' if with_masks > len(objects) / 2 else 'faster_rcnn_r50')
    if model not in MODELS:
        raise UserError(f'--model {model}: there is {at_most(MODELS, 30)}.{suggest(model, MODELS)}')
    detector, _, depth = model.rpartition('_r')
    if 'mask' in detector and not with_masks:
        boxes_alone = model.replace('cascade_mask', 'cascade').replace('mask', 'faster')
        raise UserError(f'--model {model}: no object of {splits["train"]} has a mask; take {boxes_alone}')
    out = Path(args.out or re.sub(r'\W', '_', Path(os.path.abspath(source)).name) + '.py')
    if out.suffix != '.py':
        raise UserError(f'--out {out}: a .py file is needed')
    if out.exists():
        raise UserError(f'{out} exists; choose another --out, or remove it')
    used = {x['category_id'] for x in content['annotations']}
    classes = tuple(dict.fromkeys(c['name'] for c in content['categories'] if c['id'] in used))
    data = dict(root=args.source, **{part: path.relative_to(source).as_posix() for part, path in splits.items()})
    images = {part: image_folder(path, source) for part, path in splits.items()}
    if any(images.values()):
        images.setdefault('test', images.get('val'))
        data['images'] = images
    if 'val' not in data:
        data['val'] = None
    data['classes'] = classes
    plan = Plan(content, *machine(), args.from_scratch, 'mask' in detector)
    text = config_text(detector, int(depth), args.norm, data, plan, args.source)
    check_writable(str(out.parent), '--out')
    write_atomically(out, text.encode())
    print(text)
    print(f'wrote {out}. Next: mmdet check {out}, mmdet browse {out}, mmdet train {out}'
          + (f' --gpus {plan.gpus}' if plan.gpus > 1 else ''))
