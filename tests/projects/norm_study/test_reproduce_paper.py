"""tools/reproduce_paper.sh with a stand-in for Python that records what it is asked to do."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from projects.norm_study import paper_table

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / 'tools' / 'reproduce_paper.sh'
STAND_IN = """#!{python}
import os, sys
from pathlib import Path
arguments = sys.argv[1:]
with open({log!r}, 'a') as log:
    print(*[Path(arguments[0]).name, *arguments[1:]], file=log)
tool = Path(arguments[0]).name
if tool == 'paper_table.py':
    os.execv({python!r}, [{python!r}, *arguments])
work = Path(arguments[arguments.index('--work-dir') + 1])
if os.environ.get('BREAK') and os.environ['BREAK'] in ' '.join([tool, *arguments]):
    sys.exit(3)
if tool == 'train.py':
    work.mkdir(parents=True, exist_ok=True)
    (work / 'last_checkpoint').write_text(str(work / 'epoch_12.pth'))
else:
    (work / 'stamp').mkdir(parents=True)
    (work / 'stamp' / 'stamp.json').write_text('{{"coco/bbox_mAP": 0.38, "coco/bbox_mAP_50": 0.59, '
        '"coco/bbox_mAP_75": 0.41, "coco/segm_mAP": 0.35, "coco/segm_mAP_50": 0.56, "coco/segm_mAP_75": 0.37}}')
"""


@pytest.fixture
def reproduce(tmp_path):
    log, python = tmp_path / 'log', tmp_path / 'python'
    python.write_text(STAND_IN.format(python=sys.executable, log=str(log)))
    python.chmod(0o755)

    def run(*arguments, **environment):
        log.write_text('')
        done = subprocess.run(
            [SCRIPT, '--work-dir', tmp_path / 'out', *arguments],
            env={**os.environ, 'PYTHON': str(python), **environment}, capture_output=True, text=True,
        )  # fmt: skip
        return done, log.read_text().splitlines()

    return run


def test_all_eight_are_trained_tested_and_tabled_once(reproduce):
    done, calls = reproduce('--gpus', '2')
    assert done.returncode == 0, done.stderr
    assert sum(call.startswith('train.py') for call in calls) == 8
    assert all('--gpus 2' in call for call in calls if not call.startswith('paper_table'))
    segm = [call for call in calls if call.startswith('test.py') and call.endswith('--eval bbox segm')]
    assert len(segm) == 4 and all('mask_rcnn' in call for call in segm)
    assert 'not run' not in done.stdout
    assert '| Mask R-CNN mask | CBN | 34.7 / 55.9 / 37.0 | 35.0 / 56.0 / 37.0 | +0.3 |' in done.stdout
    _, again = reproduce()
    assert [call.split()[0] for call in again] == ['paper_table.py']


def test_what_was_released_is_run_where_it_is_asked_for(reproduce):
    done, calls = reproduce('--as-released', '--only', 'as_released')
    assert done.returncode == 0
    configs = [call.split()[1].rsplit('/', 1)[-1] for call in calls if call.startswith('train.py')]
    assert configs == [f'{model}_rcnn_r50_fpn_cbn_as_released_1x.py' for model in ('faster', 'mask')]


def test_it_stops_at_a_failure_and_goes_on_from_there(reproduce):
    done, _ = reproduce(BREAK='faster_rcnn_r50_fpn_gn_1x.py')
    assert done.returncode == 3
    done, calls = reproduce('--cfg-options', 'data_root=/coco/', 'train_cfg.max_epochs=1')
    assert done.returncode == 0
    assert sum(call.startswith('train.py') for call in calls) == 6
    assert all(call.endswith('--cfg-options data_root=/coco/ train_cfg.max_epochs=1') for call in calls[:-1])
    assert all('--resume --auto-scale-lr' in call for call in calls if call.startswith('train.py'))


def test_a_failed_test_does_not_train_again(reproduce):
    done, _ = reproduce('--only', 'faster_rcnn_r50_fpn_gn', BREAK='test.py')
    assert done.returncode == 3
    _, calls = reproduce('--only', 'faster_rcnn_r50_fpn_gn')
    assert [call.split()[0] for call in calls] == ['test.py', 'paper_table.py']


@pytest.mark.parametrize('arguments, said', [(['--gpu', '4'], 'unknown argument: --gpu'), (['--only', 'xyz'], 'xyz')])
def test_wrong_arguments_are_named(reproduce, arguments, said):
    done, calls = reproduce(*arguments)
    assert done.returncode == 2 and said in done.stderr and not calls


def test_help(reproduce):
    done, calls = reproduce('--help')
    assert done.returncode == 0 and '[--gpus 4]' in done.stdout and not calls


def test_the_table_has_the_published_models_and_says_what_has_not_run(tmp_path):
    lines = paper_table.table(tmp_path).splitlines()
    assert len(lines) == 2 + 12 and sum('not run' in line for line in lines) == 12
    folder = tmp_path / 'faster_rcnn_r50_fpn_gn_1x'
    folder.mkdir()
    measured = {'coco/bbox_mAP': 0.3771, 'coco/bbox_mAP_50': 0.592, 'coco/bbox_mAP_75': 0.412}
    (folder / 'ap.json').write_text(json.dumps(measured))
    assert '| Faster R-CNN box | GN | 37.7 / 59.2 / 41.2 | 37.7 / 59.2 / 41.2 | +0.0 |' in paper_table.table(tmp_path)
    assert 'as released' not in paper_table.table(tmp_path)
    folder = tmp_path / 'faster_rcnn_r50_fpn_cbn_as_released_1x'
    folder.mkdir()
    (folder / 'ap.json').write_text(json.dumps(measured))
    assert '| Faster R-CNN box | CBN as released | 37.6 / 58.5 / 40.9 |' in paper_table.table(tmp_path)
