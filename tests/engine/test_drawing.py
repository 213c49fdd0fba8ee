"""Where a test run's drawings go."""

from types import SimpleNamespace

import numpy as np
import torch
from mmengine.structures import InstanceData

from mmdet.engine.hooks.drawing import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmdet.visualization.visualizer import read_picture, write_picture


class Pictures(list):
    metainfo = dict(classes=('cat',))
    get_data_info = list.__getitem__


def shown(tmp_path, *names) -> list[str]:
    """Files that the hook writes for pictures of these names."""
    for name in names:
        write_picture(tmp_path / 'in' / name, np.full((300, 400, 3), 90, np.uint8))
    infos = [dict(img_path=str(tmp_path / 'in' / name)) for name in names]
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=Pictures(infos)))
    hook = DetVisualizationHook(str(tmp_path / 'out'))
    hook.before_test(runner)
    boxes = torch.tensor([[10.0, 20, 200, 220]])
    found = InstanceData(bboxes=boxes, labels=torch.zeros(1, dtype=torch.long), scores=torch.ones(1))
    for info in infos:
        hook.after_test_iter(runner, 0, outputs=[DetDataSample(metainfo=info, pred_instances=found)])
    files = [path for path in (tmp_path / 'out').rglob('*') if path.is_file()]
    assert all(read_picture(path).std() > 0 for path in files)
    return sorted(str(path.relative_to(tmp_path / 'out')) for path in files)


def test_pictures_of_one_folder_keep_their_names(tmp_path):
    assert shown(tmp_path, 'val/1.png', 'val/2.png') == ['1.png', '2.png']


def test_equal_names_of_several_folders_keep_their_folders(tmp_path):
    assert shown(tmp_path, 'a/1.png', 'b/1.png', 'b/c/1.png') == ['a/1.png', 'b/1.png', 'b/c/1.png']
