"""Whatever an image is given as, the same is found on it; what is no image is refused in one line."""

import io
import re

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.dataset import Compose
from PIL import Image

from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.config.errors import UserError
from mmdet.registry import TRANSFORMS
from mmdet.visualization.visualizer import read_image, write_image


@pytest.fixture(scope='module')
def expected(thin, photo) -> torch.Tensor:
    boxes = inference_detector(thin, photo).pred_instances.bboxes
    assert len(boxes) == 4
    return boxes


def rgb_tensor(path) -> torch.Tensor:
    return torch.from_numpy(read_image(path).copy()).permute(2, 0, 1)


FORMS = {
    'text': str,
    'array': lambda path: cv2.imread(str(path)),
    'a strided array': lambda path: np.concatenate([cv2.imread(str(path))] * 2, axis=1)[:, :120],
    'pil': Image.open,
    'tensor': rgb_tensor,
    'float tensor': lambda path: rgb_tensor(path) / 255,
    'bytes': lambda path: path.read_bytes(),
    'bytes in memory': lambda path: memoryview(path.read_bytes()),
    'an open file': lambda path: open(path, 'rb'),
    'a file in memory': lambda path: io.BytesIO(path.read_bytes()),
}
SEVERAL = {
    'list': lambda path: [str(path), cv2.imread(str(path))],
    'generator': lambda path: (p for p in [path, path]),
    'folder': lambda path: path.parent,
    'batch': lambda path: torch.stack([rgb_tensor(path)] * 2),
}


@pytest.mark.parametrize('form', FORMS)
def test_one_image_in_any_form(thin, photo, expected, form):
    result = inference_detector(thin, FORMS[form](photo))
    assert torch.equal(result.pred_instances.bboxes, expected)
    assert np.array_equal(result.image(), read_image(photo))  # what `plot` draws on


@pytest.mark.parametrize('form', SEVERAL)
def test_several(thin, photo, expected, form):
    results = inference_detector(thin, SEVERAL[form](photo), batch_size=2)
    assert len(results) == (1 if form == 'folder' else 2)
    for result in results:  # of a batch: other kernels, other last digits
        torch.testing.assert_close(result.pred_instances.bboxes, expected, atol=1e-2, rtol=0)


def test_grey_and_turned_images(thin, tmp_path):
    grey = np.random.default_rng(1).integers(0, 255, (60, 90), np.uint8)
    boxes = inference_detector(thin, np.stack([grey] * 3, axis=2)).pred_instances.bboxes
    for form in (grey, grey[..., None], Image.fromarray(grey), torch.from_numpy(grey)[None]):
        assert torch.equal(inference_detector(thin, form).pred_instances.bboxes, boxes)
    deep = np.random.default_rng(1).integers(0, 65535, (60, 90), np.uint16)
    Image.fromarray(deep).save(tmp_path / 'deep.png')
    file, pil = inference_detector(thin, [tmp_path / 'deep.png', Image.open(tmp_path / 'deep.png')])
    assert torch.equal(file.pred_instances.bboxes, pil.pred_instances.bboxes)
    turned = Image.fromarray(np.random.default_rng(2).integers(0, 255, (60, 90, 3), np.uint8))
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was held upright
    turned.save(tmp_path / 'turned.png', exif=exif)
    file, pil = inference_detector(thin, [tmp_path / 'turned.png', Image.open(tmp_path / 'turned.png')])
    assert file.ori_shape == pil.ori_shape == (90, 60)
    assert torch.equal(file.pred_instances.bboxes, pil.pred_instances.bboxes)


@pytest.mark.parametrize('given, message', [
    (np.zeros((8, 8, 4), np.uint8), 'must be (height, width, 3) uint8, got (8, 8, 4) uint8'),
    (np.zeros((8, 8, 3)), 'got (8, 8, 3) float64'),
    (torch.zeros(8, 8, 3), 'a tensor image is (3, height, width), RGB'),
    (torch.full((3, 8, 8), 2.0), 'has values from 2 to 2: floats go from 0 to 1'),
    (b'no image', 'image of 8 bytes is damaged or of no known format'),
    ('film.mp4', 'film.mp4 is a video: give it to tools/predict.py'),
    ({}, 'a dict needs img_path, the name of an image file, or img, an array (h, w, 3); this one has nothing'),
    (dict(img=None), 'this one has img'),
    (dict(img_path=''), 'this one has img_path'),
    ('http://localhost:9/photo.jpg', 'image http://localhost:9/photo.jpg cannot be downloaded: '),
    (dict(img='photo.jpg'), 'photo.jpg is a name, and img an array: give it as img_path'),
    (Image.new('F', (8, 8)), "a PIL image of mode 'F' says nothing of its range"),
    (7, 'an image is a path, array, tensor, PIL image or bytes, not int'),
], ids=lambda value: str(value)[:12] if isinstance(value, str) else type(value).__name__)  # fmt: skip
def test_what_is_no_image_is_refused(thin, given, message):
    for call in (lambda: inference_detector(thin, given), lambda: inference_detector(thin, [given])):
        with pytest.raises(UserError, match=re.escape(message)):
            call()


def test_an_empty_folder_is_refused(thin, tmp_path):
    with pytest.raises(UserError, match='no image in this folder'):
        inference_detector(thin, tmp_path)
    assert inference_detector(thin, []) == []


def test_texts_are_refused(thin, config, photo):
    with pytest.raises(UserError, match='text_prompt: no model here reads text'):
        inference_detector(thin, photo, text_prompt='a cat')
    with pytest.raises(UserError, match='texts: no model here reads text'):
        DetInferencer(config, device='cpu')(str(photo), texts='a cat')


# ---------------------------------------------------------------------- pipelines of one's own


class Mirrored(BaseTransform):
    """A loader of one's own, which turns files round."""

    def transform(self, results: dict) -> dict:
        img = cv2.imread(results['img_path'])[:, ::-1]
        shape = img.shape[:2]
        return dict(results, img=img, img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0))


@pytest.mark.parametrize('kind', ['class', 'name', 'prefix'])
def test_a_first_step_of_ones_own(config, photo, expected, kind):
    if 'Mirrored' not in TRANSFORMS:
        TRANSFORMS.register_module(module=Mirrored)
    names = {'class': Mirrored, 'name': 'Mirrored', 'prefix': 'mmdet.Mirrored'}
    config.test_dataloader.dataset.pipeline[0] = dict(type=names[kind])
    torch.manual_seed(0)
    model = init_detector(config, device='cpu')
    file, array = inference_detector(model, [photo, cv2.imread(str(photo))])
    mirrored = inference_detector(model, np.ascontiguousarray(cv2.imread(str(photo))[:, ::-1]))
    assert torch.equal(file.pred_instances.bboxes, mirrored.pred_instances.bboxes)
    assert torch.equal(array.pred_instances.bboxes, expected)  # an array is not read by anything


def test_annotations_are_not_loaded_whatever_their_step_is_called(config, photo, expected):
    steps = config.test_dataloader.dataset.pipeline
    steps[0].type = 'mmdet.LoadImageFromFile'
    steps.insert(1, dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True))
    torch.manual_seed(0)
    found = inference_detector(init_detector(config, device='cpu'), photo)
    assert torch.equal(found.pred_instances.bboxes, expected) and 'bboxes' not in found.gt_instances


def test_a_test_pipeline_given_by_the_caller(thin, photo, expected):
    """As mmdetection's demo for large images builds it."""
    steps = [dict(type='mmdet.LoadImageFromNDArray'), *thin.cfg.test_dataloader.dataset.pipeline[1:]]
    with_names = Compose([dict(step, type=f'mmdet.{step["type"].removeprefix("mmdet.")}') for step in steps])
    found = inference_detector(thin, cv2.imread(str(photo)), test_pipeline=with_names)
    assert torch.equal(found.pred_instances.bboxes, expected)


def test_a_rejecting_pipeline_says_so(config, tmp_path):
    config.test_dataloader.dataset.pipeline[0].ignore_empty = True
    (tmp_path / 'broken.jpg').write_bytes(b'nothing')
    model = init_detector(config, device='cpu')
    with pytest.raises(UserError, match='the test pipeline rejects .*broken.jpg'):
        inference_detector(model, tmp_path / 'broken.jpg')


def test_settings_can_be_changed_afterwards(config, photo):
    model = init_detector(config, device='cpu')
    assert model.with_mask and model.with_bbox and model.with_rpn and model.with_neck
    model.test_cfg.rcnn.max_per_img = 2
    assert len(inference_detector(model, photo).pred_instances) == 2


# ---------------------------------------------------------------------- DetInferencer


@pytest.fixture(scope='module')
def inferencer(thin):
    torch.manual_seed(0)
    return DetInferencer(thin.cfg, device='cpu', show_progress=False)


def test_inferencer_gives_lists_drawings_and_files(inferencer, photo, expected, tmp_path):
    array = cv2.imread(str(photo))
    (tmp_path / 'other').mkdir()
    write_image(tmp_path / 'other' / 'photo.png', read_image(photo))
    images = [str(photo), array, str(tmp_path / 'other' / 'photo.png')]
    out = inferencer(images, return_vis=True, no_save_pred=False, pred_score_thr=0.0, out_dir=str(tmp_path / 'out'))
    assert len(out['predictions']) == len(out['visualization']) == 3
    for found in out['predictions']:
        assert set(found) == {'labels', 'scores', 'bboxes', 'masks'}
        np.testing.assert_array_equal(found['bboxes'], expected.tolist())
        assert found['masks'][0]['size'] == [80, 120] and isinstance(found['masks'][0]['counts'], str)
    file, plain, _ = out['visualization']
    assert np.array_equal(file, plain[..., ::-1]) and file.shape == (80, 120, 3)  # each in its own channel order
    assert (file != read_image(photo)).any()
    names = {path.name for path in (tmp_path / 'out').rglob('*.*')}
    assert names == {'photo.jpg', 'photo.json', '00000001.jpg', '00000001.json', 'photo_2.jpg', 'photo_2.json'}


def test_inferencer_without_anything_to_write(inferencer, photo, tmp_path, capsys):
    out = inferencer(photo, return_datasamples=True, no_save_vis=True, print_result=True, out_dir=str(tmp_path))
    assert out['visualization'] == [] and not list(tmp_path.iterdir()) and 'DetResult' in capsys.readouterr().out
    assert out['predictions'][0].pred_instances.masks.numpy().shape == (4, 80, 120)
    with pytest.raises(ValueError, match='unknown argument'):
        inferencer(photo, treshold=0.3)


def test_inferencer_reads_the_config_in_a_checkpoint_as_data(thin, photo, expected, tmp_path):
    def saved(cfg: str) -> str:
        meta = dict(cfg=cfg, dataset_meta=dict(classes=('a', 'b', 'c')))
        torch.save(dict(state_dict=thin.state_dict(), meta=meta), tmp_path / 'x.pth')
        return str(tmp_path / 'x.pth')

    inferencer = DetInferencer(weights=saved(thin.cfg.pretty_text), device='cpu', show_progress=False)
    out = inferencer(photo)
    np.testing.assert_array_equal(out['predictions'][0]['bboxes'], expected.tolist())
    assert inferencer.model.dataset_meta['classes'] == ('a', 'b', 'c')
    with pytest.raises(UserError, match='not an assignment; the text of a config runs no code'):
        DetInferencer(weights=saved(f'import os\nos.mkdir({str(tmp_path / "run")!r})'))
    with pytest.raises(UserError, match='more than data; the text of a config runs no code'):
        DetInferencer(weights=saved(f'model = dict(a=__import__("os").mkdir({str(tmp_path / "run")!r}))'))
    assert not (tmp_path / 'run').exists()
    with pytest.raises(UserError, match='holds no config'):
        DetInferencer(weights=saved(''))
    with pytest.raises(UserError, match='needs a config'):
        DetInferencer()
