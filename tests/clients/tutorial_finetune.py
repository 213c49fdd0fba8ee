"""A data set in COCO's format with classes of one's own, fine-tuned from a checkpoint, as in tutorials; then used."""

import sys

from mmengine.config import Config
from mmengine.runner import Runner, set_random_seed

from mmdet.apis import DetInferencer
from mmdet.utils import register_all_modules

register_all_modules()
cfg = Config.fromfile('config.py')
cfg.metainfo = {
    'classes': ('circle', 'square', 'triangle', 'star'),
    'palette': [(220, 20, 60), (9, 9, 9), (0, 9, 0), (0, 0, 9)],
}
cfg.train_dataloader.dataset.metainfo = cfg.metainfo
cfg.val_dataloader.dataset.metainfo = cfg.metainfo
cfg.test_dataloader = cfg.val_dataloader
cfg.load_from = 'weights.pth'
cfg.work_dir = 'tutorial'
cfg.optim_wrapper.optimizer.lr = 1e-4
cfg.default_hooks.logger.interval = 1
set_random_seed(0, deterministic=False)
Runner.from_cfg(cfg).train()
cfg.dump('tutorial/config.py')
inferencer = DetInferencer('tutorial/config.py', 'tutorial/epoch_1.pth', device='cpu')
result = inferencer(sys.argv[1], out_dir='out', no_save_pred=False, pred_score_thr=0.0)
palette = inferencer.model.dataset_meta['palette']
print(sorted(result['predictions'][0]), [tuple(colour) for colour in palette][:1])
