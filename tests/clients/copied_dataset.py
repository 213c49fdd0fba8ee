"""A data set that loads and parses its lists as mmdetection's own does, with a column more; and its file's index."""

import copy
import os.path as osp

from mmengine.config import Config
from mmengine.fileio import get_local_path
from mmengine.runner import Runner

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS


@DATASETS.register_module()
class CameraDataset(CocoDataset):
    METAINFO = {'classes': ('circle', 'square', 'triangle', 'star'), 'palette': [(220, 20, 60)] * 4}

    def load_data_list(self):
        with get_local_path(self.ann_file, backend_args=self.backend_args) as path:
            self.coco = self.COCOAPI(path)
        self.cat_ids = self.coco.get_cat_ids(cat_names=self.metainfo['classes'])
        self.cat2label = {cat_id: label for label, cat_id in enumerate(self.cat_ids)}
        self.cat_img_map = copy.deepcopy(self.coco.cat_img_map)
        images, ids = [], []
        for img_id in self.coco.get_img_ids():
            image = self.coco.load_imgs([img_id])[0]
            image['img_id'] = img_id
            ann_ids = self.coco.get_ann_ids(img_ids=[img_id])
            ids.extend(ann_ids)
            raw = dict(raw_img_info=image, raw_ann_info=self.coco.load_anns(ann_ids))
            images.append(self.parse_data_info(raw))
        if self.ANN_ID_UNIQUE:
            assert len(set(ids)) == len(ids)
        del self.coco
        return images

    def parse_data_info(self, raw_data_info):
        image, objects = raw_data_info['raw_img_info'], raw_data_info['raw_ann_info']
        instances = []
        for annotation in objects:
            x, y, w, h = annotation['bbox']
            if annotation['category_id'] in self.cat_ids:
                instances.append(dict(bbox=[x, y, x + w, y + h], bbox_label=self.cat2label[annotation['category_id']],
                                      ignore_flag=annotation.get('iscrowd', 0), mask=annotation['segmentation']))
        return dict(img_path=osp.join(self.data_prefix['img'], image['file_name']), img_id=image['img_id'],
                    height=image['height'], width=image['width'], instances=instances, camera=len(instances))


@DATASETS.register_module()
class OneMore(CocoDataset):
    """What mmdetection's parse gives, and a column more."""

    METAINFO = CameraDataset.METAINFO

    def parse_data_info(self, raw_data_info):
        info = super().parse_data_info(raw_data_info)
        info['camera'] = len(raw_data_info['raw_ann_info']) + raw_data_info['raw_img_info']['img_id'] * 0
        return info


cfg = Config.fromfile('config.py')
cfg.work_dir = 'work'
cfg.train_dataloader.dataset.type = 'CameraDataset'
cfg.train_dataloader.dataset.pop('metainfo', None)
runner = Runner.from_cfg(cfg)
runner.train()
copied = runner.train_dataloader.dataset
options = cfg.train_dataloader.dataset.copy()
options.pop('type')
plain, more = CocoDataset(metainfo=dict(classes=copied.metainfo['classes']), **options), OneMore(**options)
same = [all(a[key] == b[key] for key in ('img_path', 'img_id', 'instances', 'height')) for a, b in
        ((dataset.get_data_info(i), plain.get_data_info(i)) for dataset in (copied, more) for i in range(len(plain)))]
index = copied.cat_img_map == plain.cat_img_map == COCO(plain.ann_file).cat_img_map
print(len(same), all(same), more.get_data_info(0)['camera'] == copied.get_data_info(0)['camera'], index)
