"""The command lines that people type, on the toy task: N processes on CPU, signals, results, wrong use."""

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_task import ENVIRONMENT, write_config

ROOT = Path(__file__).resolve().parents[2]


def start(*command, **environment) -> subprocess.Popen:
    env = {**ENVIRONMENT, 'PYTHONWARNINGS': 'ignore', 'PYTHON': sys.executable, **environment}
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen([str(c) for c in command], env=env, **pipes)


def run(*command, status: int = 0, **environment) -> tuple[str, str]:
    process = start(*command, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == status, f'status {process.returncode}\n{out[-2000:]}\n{err[-3000:]}'
    return out, err


def tool(name: str) -> list:
    return [sys.executable, ROOT / 'tools' / name]


@pytest.fixture
def toy(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_config(tmp_path)


def test_train_resume_and_test_on_two_processes(toy):
    out, err = run(ROOT / 'tools' / 'dist_train.sh', toy, 2, '--work-dir', 'run', '--seed', 1)
    assert '2 x 2 images a step (CPU)' in out and 'Finished.' in out and err == ''
    out, _ = run(ROOT / 'tools' / 'dist_train.sh', toy, 2, '--work-dir', 'run', '--resume', '--cfg-options',
                 'train_cfg.max_epochs=3')  # fmt: skip
    assert 'resumed epoch: 2, iter: 4' in out and Path('run/epoch_3.pth').exists()

    results = {}
    for gpus in (1, 2):
        out, err = run(ROOT / 'tools' / 'dist_test.sh', toy, 'run/epoch_3.pth', gpus, '--out', f'{gpus}.pkl')
        assert f'Testing ToyDetector on ToyDataset (5 images, 2 classes), {gpus} x 1 images' in out and 'mAP: ' in out
        assert err == ''
        results[gpus] = pickle.loads(Path(f'{gpus}.pkl').read_bytes())
    # In the order of the data set, whatever the number of processes; the padded sixth image is left out.
    for result in results.values():
        assert [r['img_id'] for r in result] == [100, 101, 102, 103, 104]
        assert all(isinstance(r['pred_instances']['bboxes'], np.ndarray) for r in result)


@pytest.mark.slow
def test_two_processes_stop_together_and_resume(toy):
    arguments = [toy, '--gpus', 2, '--work-dir', 'run', '--cfg-options', 'train_dataloader.dataset.length=400',
                 'train_cfg.max_epochs=50']  # fmt: skip
    process = start(*tool('train.py'), *arguments)
    for line in process.stdout:
        if 'Epoch(train)' in line:
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert err.count('stopped by SIGTERM after iteration') == 1 and 'Traceback' not in err
    iteration = torch.load('run/interrupted.pth', weights_only=True)['meta']['iter']
    process = start(*tool('train.py'), *arguments, '--resume')
    for line in process.stdout:
        if 'resumed epoch' in line:
            assert f'iter: {iteration}' in line
        if 'Epoch(train)' in line:
            break
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT


@pytest.mark.slow
def test_a_mistake_of_all_ranks_or_of_one_is_printed_once(toy):
    _, err = run(*tool('train.py'), toy, '--gpus', 2, '--cfg-options', 'model.num_classes=3', status=2)
    assert err.count('error:') == 1 and 'model.head.num_classes=3, but the data set has 2 classes' in err
    _, err = run(*tool('train.py'), toy, '--gpus', 2, '--seed', 3, '--cfg-options',
                 'train_dataloader.dataset.bad_item=3', status=2)  # fmt: skip
    assert err.count('error:') == 1 and 'the loss is not finite at epoch 1' in err and 'Traceback' not in err


@pytest.mark.slow
def test_torchrun_and_pytorch_launcher(toy):
    out, _ = run(sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', 2, '--master_port', 29617,
                 ROOT / 'tools' / 'train.py', toy, '--launcher', 'pytorch', '--work-dir', 'run')  # fmt: skip
    assert '2 x 2 images a step (CPU)' in out and Path('run/epoch_2.pth').exists()


@pytest.mark.parametrize(
    'name, arguments, expected',
    [
        ('train.py', ['missing.py'], 'config file missing.py not found'),
        ('train.py', ['toy.py', '--cfg-options', 'optim_wraper.type=x'], 'Did you mean optim_wrapper?'),
        ('train.py', ['toy.py', '--auto-scale-lr'], 'auto_scale_lr=dict(base_batch_size=N)'),
        ('train.py', ['toy.py', '--launcher', 'slurm'], 'SLURM_PROCID'),
        ('train.py', ['toy.py', '--workdir', 'x'], 'Did you mean --work-dir?'),
        ('train.py', ['toy.py', '--gpus', '0'], '--gpus 0: at least 1 process is needed'),
        ('train.py', ['toy.py', '--work-dir', 'toy.py/x'], '--work-dir toy.py/x: cannot write there (Not a directory)'),
        ('train.py', ['toy.py', '--cfg-options', 'train_cfg.val_interval=0'], 'train_cfg.val_interval=0: a whole'),
        ('test.py', ['toy.py', 'x.pth', '--out', 'toy.py/x.pkl'], '--out toy.py: cannot write there (it is a file)'),
        ('test.py', ['toy.py', 'x.pth', '--out', 'folder.pkl'], '--out folder.pkl is a folder'),
        ('test.py', ['toy.py', 'x.pth', '--out', 'results.txt'], '--out results.txt: the file name must end with .pkl'),
        ('test.py', ['toy.py', 'x.pth'], 'checkpoint x.pth not found'),
        ('test.py', ['toy.py', 'x.pth', '--eval', 'bbox'], 'test_evaluator of the config (ToyMetric) offers nothing'),
        ('print_config.py', ['toy.py', '--cfg-options', 'model.type=Toy'], "unknown type 'Toy' at model.type"),
    ],
)
def test_wrong_use_is_one_line(toy, name, arguments, expected, run_tool):
    Path('folder.pkl').mkdir()
    status, out, err = run_tool(name, *arguments)
    assert status == 2 and out == ''
    assert err.startswith('error: ') and expected in err and err.count('\n') == 1


def test_the_metrics_of_the_config_answer_eval(toy, run_tool):
    """Whatever their class: one that offers names computes those asked for, or is left out; others stay."""
    toy.with_name('my_metrics.py').write_text("""
import json
from pathlib import Path
from mmdet.registry import METRICS
from toy_task import ToyMetric


@METRICS.register_module(force=True)
class Speed(ToyMetric):
    offers = ('fps', 'latency')

    def __init__(self, metric=('fps',), format_only=False, outfile_prefix=None):
        super().__init__(prefix='speed')
        self.metric, self.format_only, self.outfile_prefix = metric, format_only, outfile_prefix

    def compute_metrics(self, results):
        if self.format_only:
            Path(self.outfile_prefix).with_suffix('.speed').write_text('1')
            return {}
        return {name: 1.0 for name in self.metric}


@METRICS.register_module(force=True)
class Size(Speed):
    offers = ('bytes',)
""")
    evaluators = "[dict(type='ToyMetric', prefix='toy'), dict(type='Speed', metric='fps'), dict(type='Size')]"
    write_config(toy.parent, text=f"custom_imports['imports'].append('my_metrics')\ntest_evaluator = {evaluators}\n")
    run(*tool('train.py'), toy, '--work-dir', 'run')

    def test(*words) -> tuple[int, str]:
        status, out, err = run_tool('test.py', 'toy.py', 'run/epoch_2.pth', '--work-dir', 'out', *words)
        return status, err if status else out

    status, out = test('--eval', 'latency', 'fps')
    assert status == 0 and 'speed/latency: 1.0' in out and 'speed/fps: 1.0' in out and 'toy/mAP' in out
    assert 'bytes' not in out
    offered = 'test_evaluator of the config (ToyMetric, Speed, Size) offers fps, latency, bytes.'
    assert test('--eval', 'fpss') == (2, f'error: --eval fpss: {offered} Did you mean fps?\n')
    assert test('--format-only')[0] == 0 and Path('out/results.speed').exists()
    toy.write_text(toy.read_text().replace(evaluators, "dict(type='ToyMetric')"))
    message = 'error: --format-only: test_evaluator of the config (ToyMetric) writes no files of results\n'
    assert test('--format-only') == (2, message)


def test_usage_lines():
    for script in ('dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'):
        _, err = run(ROOT / 'tools' / script, status=2)
        assert err.startswith('usage:')


def test_slurm_scripts_ask_for_what_they_are_told(tmp_path, monkeypatch):
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\necho "$@"\n')
    srun.chmod(0o755)
    path = f'{tmp_path}:{os.environ["PATH"]}'
    out, _ = run(ROOT / 'tools' / 'slurm_train.sh', 'gpu', 'job', 'c.py', 'out', '--amp', PATH=path, GPUS='4')
    assert '-p gpu --job-name=job --gres=gpu:4 --ntasks=4 --ntasks-per-node=4' in out
    assert out.rstrip().endswith('c.py --work-dir out --amp --launcher slurm')
    environment = dict(PATH=path, GPUS='2', GPUS_PER_NODE='0')
    out, _ = run(ROOT / 'tools' / 'slurm_test.sh', 'cpu', 'job', 'c.py', 'x.pth', **environment)
    assert '--gres' not in out and '--ntasks=2' in out and out.rstrip().endswith('c.py x.pth --launcher slurm')


@pytest.mark.slow
def test_amp_on_cpu_and_scaled_learning_rate(toy):
    toy.write_text(toy.read_text() + 'auto_scale_lr = dict(enable=False, base_batch_size=16)\n')
    out, _ = run(*tool('train.py'), toy, '--amp', '--auto-scale-lr', '--cfg-options', 'param_scheduler=None')
    assert 'lr: 1.2500e-02' in out and 'Finished' in out


def test_curves_of_a_run(tmp_path):
    data = tmp_path / 'run' / '20260101_000000' / 'vis_data'
    data.mkdir(parents=True)
    lines = ['{"lr": 0.01, "loss": 2.0, "loss_cls": 1.5, "iter": 10, "step": 10}',
             '{"lr": 0.02, "loss": 1.0, "loss_cls": 0.5, "iter": 20, "step": 20}',
             '{"coco/bbox_mAP": 0.5, "coco/bbox_mAP_50": 0.7, "step": 1}', '{"lr": 0.02, "lo']  # fmt: skip
    (data / 'scalars.json').write_text('\n'.join(lines))
    out, _ = run(sys.executable, '-m', 'mmdet', 'curves', tmp_path / 'run')
    assert out.startswith('2 logged iterations, 1 evaluations')
    assert (tmp_path / 'run' / 'curves.png').stat().st_size > 10_000
    _, err = run(sys.executable, '-m', 'mmdet', 'curves', tmp_path, status=2)
    assert 'holds no log of a training' in err


def test_detections_are_saved_when_the_evaluation_fails(toy, monkeypatch, run_tool):
    """A long test run is not lost to a mistake that shows at its end."""
    toy = write_config(toy.parent, text="test_evaluator = dict(type='CocoMetric', ann_file='a.json')\n")
    categories = [dict(id=1, name='circle'), dict(id=2, name='square')]
    Path('a.json').write_text(json.dumps(dict(images=[], categories=categories, annotations=[])))
    run(*tool('train.py'), toy, '--work-dir', 'run', '--seed', 1)

    def fail(self, results):
        raise ValueError('no evaluation')

    monkeypatch.setattr('mmdet.evaluation.CocoMetric.process', lambda *_: None)
    monkeypatch.setattr('mmdet.evaluation.CocoMetric.compute_metrics', fail)
    status, _, err = run_tool('test.py', toy, 'run/epoch_2.pth', '--out', 'found.pkl')
    assert status and 'error: no evaluation' in err
    assert len(pickle.loads(Path('found.pkl').read_bytes())) == 5


def test_the_gpu_check_goes_on_and_names_what_failed(tmp_path):
    python = tmp_path / 'python'
    python.write_text('#!/bin/sh\ncase "$*" in *tests/layers*) exit 3 ;; *mmdet.ops*) sleep 60 ;; esac\n')
    python.chmod(0o755)
    process = start(ROOT / 'tools' / 'dev' / 'gpu_check.sh', tmp_path / 'out', PYTHON=str(python), SECONDS_IN_ALL='7')
    out, _ = process.communicate(timeout=60)
    table = (tmp_path / 'out' / 'summary.txt').read_text()
    assert 'build        ok' in table and 'kernels      FAILED (no end within its time)' in table
    assert 'tests_cbn    NOT RUN: no time left' in table and out.count(table) == 1
    assert f'{process.returncode} failed: ' in out.splitlines()[-1] and 'kernels' in out.splitlines()[-1]
    chosen = start(ROOT / 'tools' / 'dev' / 'gpu_check.sh', tmp_path / 'out', PYTHON=str(python), ONLY='build|_cbn')
    out, _ = chosen.communicate(timeout=60)
    table = (tmp_path / 'out' / 'summary.txt').read_text().splitlines()
    assert [line.split(' after')[0] for line in table if 'not run' not in line] == [
        'build        ok', 'tests_cbn    FAILED (3)', 'bench_cbn    ok']
    assert chosen.returncode == 1 and out.splitlines()[-1] == '1 failed: tests_cbn'
