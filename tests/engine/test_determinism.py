"""A real detector (Mask R-CNN, ResNet-18, CBN), trained twice from one seed."""

from pathlib import Path

from mmengine.hooks import Hook

from projects.demo.shapes import write_shapes

CONFIG = Path(__file__).resolve().parents[2] / 'configs' / 'demo' / 'mask_rcnn_r18_fpn_cbn_shapes.py'


class Losses(Hook):
    def __init__(self):
        self.seen = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.seen.append({name: float(value.detach()) for name, value in outputs.items()})


def test_ten_iterations_twice_give_the_same_bits(tmp_path, train):
    """Five epochs of two iterations: from the third on, CBN's windows are in use."""
    data = write_shapes(tmp_path / 'shapes', train=4, val=1, size=96)
    options = {
        'data_root': f'{data}/', 'train_pipeline.2.scale': (64, 64), 'train_dataloader.num_workers': 0,
        'train_cfg.val_interval': 100, 'param_scheduler': None, 'model.train_cfg.rcnn.sampler.num': 16,
        'model.train_cfg.rpn_proposal.max_per_img': 50,
    }  # fmt: skip
    runs = []
    for seed, epochs in ((0, 5), (0, 5), (1, 1)):
        losses = Losses()
        train(CONFIG, f'run{len(runs)}', {**options, 'train_cfg.max_epochs': epochs}, seed=seed, hooks=[losses])
        runs.append(losses.seen)
    assert len(runs[0]) == 10 and {'loss', 'loss_rpn_cls', 'loss_bbox', 'loss_mask'} <= set(runs[0][0])
    assert runs[0] == runs[1] and runs[0][0] != runs[2][0]
