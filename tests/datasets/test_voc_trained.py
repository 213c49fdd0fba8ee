"""From Pascal VOC's folders to its table of average precision, on playing cards."""

import subprocess
import sys
from pathlib import Path

import pytest
from factories import RESNET18, command_line

ROOT = Path(__file__).resolve().parents[2]
CONFIG = f"""
_base_ = {str(ROOT / 'configs/pascal_voc/faster_rcnn_r50_fpn_1x_voc0712.py')!r}
part = dict(
    type='VOCDataset', data_root='DATA', metainfo=dict(classes=('ace', 'jack', 'king', 'nine', 'queen', 'ten')),
    data_prefix=dict(sub_data_root='VOC2007/'))
train_dataloader = dict(num_workers=0, batch_size=4, dataset=dict(times=1, dataset=dict(datasets=[dict(
    part, ann_file='VOC2007/ImageSets/Main/trainval.txt', pipeline={{{{_base_.train_pipeline}}}}, indices=24)])))
val_dataloader = dict(num_workers=0, dataset=dict(part, indices=7))
test_dataloader = val_dataloader
model = dict(roi_head=dict(bbox_head=dict(num_classes='auto')), test_cfg=dict(rcnn=dict(score_thr=0.0)))
optim_wrapper = dict(optimizer=dict(lr=0.01))
train_cfg = dict(max_epochs=1)
param_scheduler = []
"""


@pytest.mark.slow
def test_from_folders_to_a_table(tmp_path, real_data):
    (tmp_path / 'cards.py').write_text(
        CONFIG.replace('DATA', str(real_data / 'cards_voc')).replace('(1000, 600)', '(160, 96)'))

    def tool(name: str, *arguments: str) -> str:
        command = [sys.executable, ROOT / 'tools' / name, 'cards.py', *arguments, '--cfg-options',
                   'train_pipeline.2.scale=160,96', 'test_pipeline.1.scale=160,96', *command_line(RESNET18)]
        command = [str(part) for part in command]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout + done.stderr

    def table(out: str) -> list[str]:
        return [line for line in out.splitlines() if line.startswith('| ')]

    trained = tool('train.py', '--work-dir', 'run', '--seed', '0')
    tested = tool('test.py', 'run/epoch_1.pth', '--eval', 'mAP', '--gpus', '2', '--out', 'found.pkl')
    assert table(trained) == table(tested) and len(table(tested)) == 8  # of 2 processes one has an image twice
    assert 'Pascal VOC, 7 images' in trained and 'Pascal VOC, 7 images' in tested
    assert table(tested)[-1].split()[:3] == ['|', 'mean', '7'] and (tmp_path / 'found.pkl').is_file()
    assert (tmp_path / 'run' / 'best_pascal_voc_mAP_epoch_1.pth').is_file()
