"""Record what mmdetection 3.3 computes: python tests/checkpoints/record_mmdet3.py CONFIGS OUT [--photos FOLDER]

To be run inside an environment with mmdetection 3.3, not with this project. CONFIGS is mmdetection's folder of config
files (`mmdet/.mim/configs` of its wheel). For each case of mmdet3_cases.py it writes OUT/NAME.npz: the keys and shapes
of the state dict, the training losses, the norms of the gradients, and the detections. test_mmdet3.py compares.
"""

import argparse
import json
from pathlib import Path

import mmdet3_cases as cases
import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

import mmdet.models  # noqa: F401 - registers
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks


def record(config: Path, changes: dict, images: list[np.ndarray], thin: bool) -> dict[str, np.ndarray]:
    cfg = Config.fromfile(config).model.to_dict()
    cases.merge(cfg, changes)
    cfg['backbone']['init_cfg'] = None
    if thin:
        cases.narrow(cfg)
    cases.sample_everything(cfg)
    model = MODELS.build(ConfigDict(cfg))
    cases.fill_weights(model)
    state = model.state_dict()
    found = dict(keys=np.array(list(state)), shapes=np.array([json.dumps(list(v.shape)) for v in state.values()]))

    model.train()
    total, logged = model.parse_losses(cases.run(model, images, 'loss', DetDataSample, BitmapMasks))
    total.backward()
    found['loss_names'] = np.array([name for name in logged if name != 'loss'])
    found['losses'] = np.array([float(logged[name]) for name in found['loss_names']])
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            part = name.rpartition('.')[0]
            squares[part] = squares.get(part, 0.0) + float(parameter.grad.double().square().sum())
    found['gradient_names'] = np.array(list(squares))
    found['gradients'] = np.sqrt(np.array(list(squares.values())))

    model.eval()
    with torch.no_grad():
        samples = cases.run(model, images, 'predict', DetDataSample, BitmapMasks)
    for index, sample in enumerate(samples):
        instances = sample.pred_instances
        for name in ('bboxes', 'scores', 'labels'):
            found[f'{name}{index}'] = instances[name].numpy()
        if 'masks' in instances:
            found[f'masks{index}'] = np.packbits(instances.masks.numpy())
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument('configs', type=Path)
    parser.add_argument('out', type=Path)
    parser.add_argument('--photos', type=Path, help='full-size models on the photographs of this folder')
    parser.add_argument('--height', type=int, default=320, help='of the photographs, pixels')
    parser.add_argument('--only', nargs='+', default=list(cases.CASES))
    args = parser.parse_args()
    init_default_scope('mmdet')
    args.out.mkdir(parents=True, exist_ok=True)
    names = sorted(path.name for path in args.photos.glob('*.jpg'))[:2] if args.photos else []
    images = cases.photos(args.photos, names, args.height) if names else cases.made_up_images()
    for name in args.only:
        config, _, _, *both = cases.CASES[name]
        found = record(args.configs / f'{config}.py', both[0] if both else {}, images, not names)
        source = json.dumps(dict(photos=names, height=args.height))
        np.savez_compressed(args.out / f'{name}.npz', source=np.array(source), **found)
        counts = [len(found[f'scores{i}']) for i in range(len(images))]
        losses = ', '.join(f'{k} {v:.3f}' for k, v in zip(found['loss_names'], found['losses']))
        print(f'{name}: {len(found["keys"])} keys, {counts} detections, {losses}', flush=True)


if __name__ == '__main__':
    main()
