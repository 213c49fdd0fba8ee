"""Programs as people write them for mmdetection 3: each runs here, or ends in the sentence meant for it."""

import ast
import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.config.errors import UserError
from mmdet.visualization.visualizer import read_image


def needs(package: str):
    return pytest.mark.skipif(find_spec(package) is None, reason=f'{package} is not installed')


def an_image() -> str:
    return str(sorted(Path('shapes/val').glob('*'))[0])


@pytest.mark.slow
@needs('sahi')
def test_sahi(program):
    lines = program('sahi_slices', an_image()).splitlines()
    assert lines[0] == 'masks circle square triangle star' and lines[-1] == 'sliced: True'
    found = inference_detector(init_detector('config.py', 'weights.pth', device='cpu'), an_image()).pred_instances
    kept = [i for i, mask in enumerate(found.masks) if mask.numpy().any()]  # sahi drops empty masks
    assert lines[1] == f'whole: {len(kept)}' and kept
    theirs = {tuple(line.split()[1:2]) for line in lines[2:-1]}
    assert theirs == {(f'{found.scores[i]:.4f}',) for i in kept}
    assert all(line.endswith('True') for line in lines[2:-1])


@pytest.mark.slow
@needs('supervision')
def test_supervision(program):
    out = program('supervision_draw', an_image(), 'drawn.png')
    count, shape = out.split(' ', 1)
    assert int(count) > 0 and shape.strip() == f'({count}, 96, 96) bool'
    assert (read_image('drawn.png') != read_image(an_image())).any()


def test_inference_server(program):
    answer = json.loads(program('inference_server', an_image()))
    found = inference_detector(init_detector('config.py', 'weights.pth', device='cpu'), an_image()).pred_instances
    assert [entry['score'] for entry in answer] == pytest.approx(found.scores.tolist()) and len(answer) == 5
    assert {entry['label'] for entry in answer} <= {'circle', 'square', 'triangle', 'star'}


def test_video_demo(program):
    assert program('video_demo', 'shapes/train').endswith('4 of 4 frames drawn\n') and Path('out.mp4').stat().st_size


@pytest.mark.slow
@needs('sahi')
def test_large_image(program):
    assert program('large_image', an_image()).splitlines()[-1] == '4 True True' and Path('merged.png').exists()


@pytest.mark.slow
def test_training_script(program):
    assert program('train_script').splitlines()[-1] == 'trained 2 1'
    drawn = sorted(path.name for path in Path('work').rglob('vis_image/*'))
    assert len(drawn) == 1 and read_image(next(Path('work').rglob('vis_image/*'))).shape == (96, 96, 3)


@pytest.mark.slow
def test_backbone_neck_loss_and_head_of_ones_own(program):
    assert program('own_parts').splitlines()[-1] == 'head called: True'


@pytest.mark.slow
def test_heads_and_a_detector_changed_in_the_places_that_are_called(program):
    losses = {f'train/loss_{name}' for name in 'bbox cls entropy maps mask rpn_bbox rpn_cls size'.split()}
    assert set(ast.literal_eval(program('own_heads').splitlines()[-1])) == losses


@pytest.mark.slow
def test_features_of_boxes(program):
    lines = program('roi_features', an_image()).splitlines()
    assert lines[:2] == ['5 5 True', 'True True True']
    assert lines[2].startswith('RPNHead.predict is given a list of DetDataSample')


@pytest.mark.slow
def test_a_heat_map_of_gradients(program):
    assert program('heat_map', an_image()).splitlines() == ['1 (3, 3, 3) True']


@pytest.mark.slow
def test_browsing_and_counting_by_hand(program):
    count = sum(len(json.loads(Path('shapes/annotations/instances_train.json').read_text())[key])
                for key in ('annotations', 'images'))  # fmt: skip
    assert program('browse_and_count').splitlines()[-1] == f'{count} True True'


def test_an_annotation_back_end(program):
    assert program('annotation_backend', an_image()) == f'{Path(an_image()).name} True True True\n'


@pytest.mark.slow
def test_a_visualizer_of_ones_own_draws_a_test_run(program):
    count = len(json.loads(Path('shapes/annotations/instances_val.json').read_text())['images'])
    assert program('own_visualizer').splitlines()[-1] == f'{count} True'
    assert len(list(Path('drawn').iterdir())) == count


@pytest.mark.slow
def test_training_by_hand(program):
    lines = program('by_hand').splitlines()
    assert 'True 5 True' in lines and lines[-1] == "['coco/bbox_mAP', 'coco/bbox_mAP_50']"


@pytest.mark.slow
def test_data_set_transform_assigner_metric_and_hook_of_ones_own(program):
    seen = ast.literal_eval(program('own_pipeline').splitlines()[-1])
    assert seen == dict(transform=6, assign=4, hook=2, images=4)  # six: two of validation


@pytest.mark.slow
def test_a_tutorial(program):
    last = program('tutorial_finetune', an_image()).splitlines()[-1]
    assert last == "['bboxes', 'labels', 'masks', 'scores'] [(220, 20, 60)]"
    assert (Path('out') / 'vis' / f'{Path(an_image()).stem}.jpg').exists()


@pytest.mark.slow
def test_a_data_set_that_loads_and_parses_as_mmdetections_own(program):
    assert program('copied_dataset').splitlines()[-1] == '8 True True True'


def test_paths_of_mmdetections_files(program):
    positive, shape = program('deep_paths').split(' ', 1)
    assert int(positive) > 0 and shape == '(1, 5)\n'


def test_forwards_that_read_what_mmdetections_parts_keep(program):
    lines = program('spelled_forwards').splitlines()
    assert lines[:5] == [f'{name} True' for name in ('TopDown', 'Branches', 'FirstLevel', 'Stages', 'SqueezedNet')]
    assert lines[5:] == ['Tanh ReLU', 'True True True False True True True']


@pytest.mark.parametrize('name, sentence', [
    ('old_roi_head', 'DoubleLoss.bbox_loss would never be called: StandardRoIHead has no bbox_loss here, override '),
    ('old_assigner', 'mmdet.models.task_modules has no AssignResult here: an assigner is any class with assign('),
    ('old_boxes', 'mmdet.structures.bbox has no HorizontalBoxes here: boxes are plain tensors (n, 4)'),
    ('old_classes', 'Shapes has CLASSES, which nothing reads: write METAINFO = dict(classes=...)'),
    ('mmdet2', 'mmdet.core is not here: it is of mmdetection 2; structures, evaluation, visualization'),
    pytest.param('flat_head', 'FlatHead.forward gave a tuple (float32 Tensor (', marks=pytest.mark.slow),
    ('torch_boxes', 'Jitter.transform gave a dict ('),
    ('copied_detector', 'RPNHead has no loss_and_predict here, use loss and predict (docs/extend/head.md)'),
    ('copied_detector predict', 'RPNHead.predict is given a list of DetDataSample, as in mmdetection, and takes plain '
     'tensors: use proposals(features, data_samples) of the detector (docs/extend/head.md)'),
    ('old_metric', 'Pairs.process keeps results of its own, which nothing counts: call '),
    ('own_dense_head', 'Points.loss(x, batch_data_samples) would be given something else: it is called as '
     'loss(*head(features), targets) here (docs/extend/head.md)'),
    ('text_prompt', 'texts: no model here reads text; leave it out'),
])  # fmt: skip
def test_what_ends_in_a_sentence(program, name, sentence):
    with pytest.raises(UserError) as error:
        program(*name.split())
    assert sentence in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('name, sentence', [
    ('rtmdet_tiny_8xb32-300e_coco', "not found. Of mmdetection's model zoo there are faster_rcnn, mask_rcnn, "),
    ('mask-rcnn_r50_fpn_1x_coco', "is here as mask_rcnn/mask_rcnn_r50_fpn_1x, without mmdetection's weights: give "),
    ('cascade-mask-rcnn_r50_fpn_1x_coco', 'is here as cascade_rcnn/cascade_mask_rcnn_r50_fpn_1x, without'),
    ('ssd300_coco', 'is here as ssd/ssd300_coco, without'),
])  # fmt: skip
def test_names_of_the_model_zoo(name, sentence):
    with pytest.raises(UserError) as error:
        DetInferencer(name, device='cpu')
    assert sentence in str(error.value)
    assert 'mask_rcnn/mask_rcnn_r50_fpn_1x' in DetInferencer.list_models('mmdet', patterns='mask')


def test_every_program_is_run():
    programs = {path.stem for path in Path(__file__).parent.glob('*.py')} - {'conftest', 'test_clients', 'test_names'}
    text = Path(__file__).read_text()
    assert all(re.search(rf"'{name}[ ']", text) for name in programs)
