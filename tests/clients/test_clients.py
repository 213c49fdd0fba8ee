"""Programs as people write them for mmdetection 3: each runs here, or ends in the sentence meant for it."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from mmdet.apis import inference_detector, init_detector
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
