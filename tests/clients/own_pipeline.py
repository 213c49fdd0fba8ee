"""A data set, a transform, an assigner, a metric and a hook of one's own, trained and evaluated."""

import json

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdet.datasets import BaseDetDataset
from mmdet.models.task_modules import MaxIoUAssigner
from mmdet.registry import DATASETS, HOOKS, METRICS, TASK_UTILS, TRANSFORMS
from mmdet.structures import DetDataSample

seen = dict(transform=0, assign=0, hook=0, images=0)


@DATASETS.register_module()
class JsonDataset(BaseDetDataset):
    """Boxes alone, from a file read by hand."""

    METAINFO = dict(
        classes=('circle', 'square', 'triangle', 'star'), palette=[(220, 20, 60), (0, 0, 142), (0, 82, 0), (9, 9, 9)]
    )

    def load_data_list(self):
        content = json.load(open(self.ann_file))
        images = []
        for image in content['images']:
            instances = [
                dict(bbox=[x, y, x + w, y + h], bbox_label=entry['category_id'] - 1, ignore_flag=entry['iscrowd'])
                for entry in content['annotations'] if entry['image_id'] == image['id']
                for x, y, w, h in [entry['bbox']]
            ]
            images.append(dict(img_path=f'{self.data_prefix["img"]}/{image["file_name"]}', img_id=image['id'],
                               height=image['height'], width=image['width'], instances=instances))  # fmt: skip
        return images


@TRANSFORMS.register_module()
class Darker(BaseTransform):
    def transform(self, results):
        seen['transform'] += 1
        results['img'] = (results['img'] * np.random.uniform(0.5, 1)).astype(np.uint8)
        return results


@TASK_UTILS.register_module()
class CountedAssigner(MaxIoUAssigner):
    def assign(self, *args, **kwargs):
        seen['assign'] += 1
        return super().assign(*args, **kwargs)


@METRICS.register_module()
class BestScore(BaseMetric):
    default_prefix = 'mine'

    def process(self, data_batch, data_samples):
        for sample in data_samples:
            found = sample['pred_instances']
            self.results.append(found['scores'].max().item() if len(found['scores']) else 0.0)

    def compute_metrics(self, results):
        return dict(best=float(np.mean(results)))


@HOOKS.register_module()
class CountImages(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        seen['hook'] += 1
        assert all(isinstance(sample, DetDataSample) for sample in data_batch['data_samples'])
        seen['images'] += len(data_batch['inputs'])


if __name__ == '__main__':
    cfg = Config.fromfile('config.py')
    cfg.work_dir = 'work'
    cfg.model.type = 'FasterRCNN'
    cfg.model.roi_head.pop('mask_head')
    cfg.model.roi_head.pop('mask_roi_extractor')
    cfg.model.train_cfg.rcnn.assigner.type = 'CountedAssigner'
    steps = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Darker'),
        dict(type='Resize', scale=(96, 96), keep_ratio=True),
        dict(type='PackDetInputs'),
    ]
    for name in ('train', 'val'):
        cfg[f'{name}_dataloader'].dataset = dict(
            type='JsonDataset', ann_file=f'shapes/annotations/instances_{name}.json', pipeline=steps,
            data_prefix=dict(img=f'shapes/{name}'), test_mode=name == 'val',
        )  # fmt: skip
    cfg.val_evaluator = dict(type='BestScore')
    cfg.default_hooks.checkpoint.update(save_best='mine/best', rule='greater')
    cfg.custom_hooks = [dict(type='CountImages')]
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    Runner.from_cfg(cfg).train()
    print(seen)
