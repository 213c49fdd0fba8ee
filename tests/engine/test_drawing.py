"""Where a test run's drawings go."""

from types import SimpleNamespace

import numpy as np
import torch
from mmengine.structures import InstanceData

from mmdet.engine.hooks.drawing import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmdet.visualization.visualizer import DetVisualizer, read_image, write_image


class Images(list):
    get_data_info = list.__getitem__


def shown(tmp_path, *names, visualizer=None, palette=None) -> list[str]:
    """Files that the hook writes for images of these names."""
    for name in names:
        write_image(tmp_path / 'in' / name, np.full((300, 400, 3), 90, np.uint8))
    infos = [dict(img_path=str(tmp_path / 'in' / name)) for name in names]
    dataset = Images(infos)
    dataset.metainfo = dict(classes=('cat',), palette=palette)
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=dataset),
                             visualizer=visualizer or DetVisualizer('test_drawing'))
    hook = DetVisualizationHook(str(tmp_path / 'out'))
    hook.before_test(runner)
    boxes = torch.tensor([[10.0, 20, 200, 220]])
    found = InstanceData(bboxes=boxes, labels=torch.zeros(1, dtype=torch.long), scores=torch.ones(1))
    for info in infos:
        hook.after_test_iter(runner, 0, outputs=[DetDataSample(metainfo=info, pred_instances=found)])
    files = [path for path in (tmp_path / 'out').rglob('*') if path.is_file()]
    assert all(read_image(path).std() > 0 for path in files)
    return sorted(str(path.relative_to(tmp_path / 'out')) for path in files)


def test_images_of_one_folder_keep_their_names(tmp_path):
    assert shown(tmp_path, 'val/1.png', 'val/2.png') == ['1.png', '2.png']


def test_equal_names_of_several_folders_keep_their_folders(tmp_path):
    assert shown(tmp_path, 'a/1.png', 'b/1.png', 'b/c/1.png') == ['a/1.png', 'b/1.png', 'b/c/1.png']


def test_a_visualizer_of_ones_own_draws(tmp_path):
    """With mmdetection's order of arguments, and the data set's names."""
    drawn = []

    class Mine(DetVisualizer):
        def add_datasample(self, name, image, data_sample=None, draw_gt=True, draw_pred=True, show=False, wait_time=0,
                           out_file=None, pred_score_thr=0.3, step=0):  # fmt: skip
            drawn.append((name, self.dataset_meta['classes'], draw_gt))
            super().add_datasample(name, image, data_sample, draw_gt, draw_pred, show, wait_time, out_file,
                                   pred_score_thr, step)  # fmt: skip

    assert shown(tmp_path, '1.png', '2.png', visualizer=Mine('mine')) == ['1.png', '2.png']
    assert drawn == [('1.png', ('cat',), False), ('2.png', ('cat',), False)]


def test_colours_are_the_data_sets(tmp_path):
    shown(tmp_path, '1.png', palette=[(255, 0, 255)])
    image = read_image(tmp_path / 'out' / '1.png').reshape(-1, 3)
    assert ((image[:, 0] > 200) & (image[:, 1] < 60) & (image[:, 2] > 200)).sum() > 200
