"""A result is short in print, and says the same to pandas, supervision and pycocotools."""

import copy
import sys

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmdet.apis import DetResult
from mmdet.config.errors import UserError
from mmdet.structures import DetDataSample
from mmdet.visualization.visualizer import read_image, write_image


@pytest.fixture
def result(tmp_path) -> DetResult:
    write_image(tmp_path / 'a<b.png', np.full((60, 80, 3), 90, np.uint8))
    masks = np.zeros((3, 60, 80), bool)
    masks[:, 10:20, 5:45] = True
    found = InstanceData(bboxes=torch.tensor([[5.0, 10, 45, 20], [5, 10, 45, 20], [50, 30, 79, 59]]),
                         scores=torch.tensor([0.9, 0.6, 0.2]), labels=torch.tensor([1, 1, 0]), masks=masks)  # fmt: skip
    sample = DetDataSample(metainfo=dict(img_path=str(tmp_path / 'a<b.png'), ori_shape=(60, 80), img_id=7))
    sample.pred_instances = found
    return DetResult.of(sample, dict(classes=('cat', 'dog'), palette=[(255, 0, 0), (0, 255, 0)]))


def test_print(result):
    text = repr(result)
    assert text.endswith('a<b.png, 80 x 60: 2 dog, 1 cat, scores up to 0.90, with masks)') and '\n' not in text
    assert repr(result.above(0.95)).endswith('80 x 60: nothing, with masks)') and str(result) == text
    assert repr(DetResult()) == 'DetResult(an image)'
    assert result.above(0.5).summary() == '2 dog' and result.of_labels([0]).summary() == '1 cat'


def test_notebooks(result, tmp_path):
    page = result._repr_html_()
    assert page.count('<tr>') == 4 and 'a&lt;b.png' in page and 'data:image/jpeg;base64,' in page
    (tmp_path / 'a<b.png').unlink()
    assert 'base64' not in result._repr_html_()  # the table still shows


def test_coco_reads_it(result):
    coco = COCO()
    coco.dataset = dict(images=[dict(id=7, height=60, width=80)], categories=[dict(id=1), dict(id=2)],
                        annotations=[dict(entry, id=i) for i, entry in enumerate(result.to_coco(), 1)])  # fmt: skip
    coco.createIndex()
    for kind in ('bbox', 'segm'):
        evaluation = COCOeval(coco, coco.loadRes(result.to_coco()), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1)
    assert [entry['score'] for entry in result.to_coco('x', score_thr=0.5)] == pytest.approx([0.9, 0.6])
    assert result.to_coco('x')[0]['image_id'] == 'x'


def test_pandas(result, monkeypatch):
    pytest.importorskip('pandas', reason='pandas is not installed')
    table = result.to_pandas()
    assert table['name'].tolist() == ['dog', 'dog', 'cat'] and table['x2'].tolist() == [45, 45, 79]
    assert list(result.above(1).to_pandas().columns) == list(table.columns)
    monkeypatch.setitem(sys.modules, 'pandas', None)
    with pytest.raises(UserError, match='pip install pandas'):
        result.to_pandas()


def test_supervision(result, monkeypatch):
    sv = pytest.importorskip('supervision', reason='supervision is not installed')
    mine, theirs = result.to_supervision(), sv.Detections.from_mmdetection(result)
    for name in ('xyxy', 'confidence', 'class_id', 'mask'):
        assert np.array_equal(getattr(mine, name), getattr(theirs, name))
    assert mine.data['class_name'].tolist() == ['dog', 'dog', 'cat'] and mine.mask.dtype == bool
    assert len(result.above(1).to_supervision()) == 0
    blue = sv.BoxAnnotator(color=sv.Color(0, 0, 255), thickness=3)
    drawn = np.asarray(result.plot(score_thr=0.5, annotators=[blue]))
    assert tuple(drawn[15, 5]) == (0, 0, 255) and tuple(drawn[45, 50]) == (90, 90, 90)
    monkeypatch.setitem(sys.modules, 'supervision', None)
    with pytest.raises(UserError, match='pip install supervision'):
        result.to_supervision()


def test_plot(result, tmp_path):
    drawn = np.asarray(result.plot(score_thr=0.5, zoom=1))
    assert tuple(drawn[15, 5]) == (0, 255, 0)  # the box's left side, in the palette's colour
    assert tuple(drawn[45, 50]) == (90, 90, 90)  # under the threshold
    assert np.asarray(result.plot(0.0, zoom=1))[45, 50, 0] > 200
    result.save(tmp_path / 'some' / 'x.png', zoom=1)
    assert np.array_equal(read_image(tmp_path / 'some' / 'x.png'), np.asarray(result.plot(zoom=1)))
    assert np.asarray(copy.deepcopy(result).plot(zoom=1)).shape == (60, 80, 3)


def test_a_copy_without_file_needs_an_image():
    sample = DetDataSample(metainfo=dict(img_path=None, ori_shape=(60, 80)))
    sample.pred_instances = InstanceData(bboxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0))
    result = DetResult.of(sample, {}, source=np.zeros((60, 80, 3), np.uint8))
    assert result.plot(zoom=1).size == (80, 60)
    with pytest.raises(UserError, match='plot\\(image=...\\)'):
        result.cpu().plot()
    assert result.cpu().plot(image=np.zeros((60, 80, 3), np.uint8), zoom=1).size == (80, 60)
