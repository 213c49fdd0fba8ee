"""A longer training than the grid's, with the strides 16 and 32 of the backbone trained: a detector for benchmarks.

    python -m projects.norm_study.detection.longer --data DIR --weights FILE --out FOLDER [--epochs 12]
    python benchmarks/trained.py FOLDER/config.py FOLDER/detector.pth --images 108

GN, 96 channels, batches of two images, seed 0. FOLDER gets config.py and detector.pth; AP is printed.
"""

import argparse
from pathlib import Path

import torch
from mmengine.logging import MMLogger

from projects.norm_study.detection import study, train

CHANNELS = 96
PARTS = (
    'neck.out', 'rpn_head.in', 'rpn_head.feat', 'roi_head.bbox_roi_extractor.out', 'roi_head.mask_roi_extractor.out',
    'roi_head.bbox_head.in', 'roi_head.bbox_head.conv_out', 'roi_head.mask_head.in', 'roi_head.mask_head.conv_out',
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='folder with facade/')
    parser.add_argument('--weights', type=Path, required=True, help="EfficientNet-Lite0's weights")
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--epochs', type=int, default=12)
    args = parser.parse_args()
    MMLogger.get_instance('norm_study', log_level='ERROR')
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    options = {'model.backbone.frozen_stages': 3, **{f'model.{part}_channels': CHANNELS for part in PARTS}}
    cfg = study.config_of('long', args.data.resolve(), args.weights, options)
    cfg.train_cfg.max_epochs = cfg.param_scheduler[1].end = cfg.param_scheduler[1].T_max = args.epochs
    norm = study.norm_cfg('GN', CHANNELS, study.SCALES[False].group)
    detector = train.Detector(cfg, norm, seed=0)
    images, tested, ann_file = study.data_of(cfg, args.out)['test']
    print(train.train(detector, images, cfg, batch=2, seed=0))
    torch.save(dict(state_dict=detector.model.state_dict(), meta={}), args.out / 'detector.pth')
    cfg.model = train.with_norm(cfg.model, norm)
    cfg.dump(args.out / 'config.py')
    print(train.test(detector, tested, ann_file))


if __name__ == '__main__':
    main()
