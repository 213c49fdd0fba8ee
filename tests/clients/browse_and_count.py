"""Training images drawn from the data set's items; detections written as COCO results, and counted by COCOeval."""

import json
import os.path as osp

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.datasets.api_wrappers import COCO, COCOeval
from mmdet.models.utils import mask2ndarray
from mmdet.registry import DATASETS, VISUALIZERS
from mmdet.structures.bbox import BaseBoxes
from mmdet.structures.mask import encode_mask_results

cfg = Config.fromfile('config.py')
init_default_scope(cfg.get('default_scope', 'mmdet'))
dataset = DATASETS.build(cfg.train_dataloader.dataset)
visualizer = VISUALIZERS.build(cfg.visualizer)
visualizer.dataset_meta = dataset.metainfo
objects = 0
for i, item in enumerate(dataset):
    image = item['inputs'].permute(1, 2, 0).numpy()[..., ::-1]
    sample = item['data_samples'].numpy()
    instances = sample.gt_instances
    if isinstance(instances.bboxes, BaseBoxes):
        instances.bboxes = instances.bboxes.tensor
    instances.masks = mask2ndarray(instances.masks).astype(bool)
    sample.gt_instances = instances
    objects += len(instances.labels)
    name = osp.basename(item['data_samples'].img_path)
    visualizer.add_datasample(name, image, sample, draw_pred=False, out_file=f'drawn/{i}.png')

coco = COCO('shapes/annotations/instances_val.json')
model = init_detector('config.py', 'weights.pth', device='cpu')
cat_ids = coco.get_cat_ids(cat_names=model.dataset_meta['classes'])
results, areas = [], []
for img_id in coco.get_img_ids():
    path = osp.join('shapes/val', coco.load_imgs([img_id])[0]['file_name'])
    found = inference_detector(model, path).pred_instances
    found = found[found.scores > 0.0].cpu().numpy()
    for box, label, score, mask in zip(found.bboxes, found.labels, found.scores, encode_mask_results(found.masks)):
        mask['counts'] = mask['counts'].decode()
        x1, y1, x2, y2 = box.tolist()
        results.append(dict(image_id=img_id, category_id=cat_ids[label], bbox=[x1, y1, x2 - x1, y2 - y1],
                            score=float(score), segmentation=mask))  # fmt: skip
        areas.append(float((y2 - y1) * (x2 - x1)))
json.dump(results, open('results.json', 'w'))
detected = coco.loadRes('results.json')
for kind in ('bbox', 'segm'):
    counting = COCOeval(coco, detected, kind)
    counting.evaluate()
    counting.accumulate()
inferencer = DetInferencer('config.py', 'weights.pth', device='cpu', show_progress=False)
samples = inferencer('shapes/val', batch_size=2, return_datasamples=True)['predictions']
masks = [mask for sample in samples for mask in sample.pred_instances.masks]
binary = [np.where(mask.cpu().numpy() > 0, 255, 0).astype(np.uint8) for mask in masks]
same = sorted(mask.sum().item() for mask in masks) == sorted(np.count_nonzero(mask) for mask in binary)
print(objects + len(dataset), same and len(masks) == len(results) > 0, osp.exists('drawn/0.png'))
