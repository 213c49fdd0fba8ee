"""One way to train the toy task in this process."""

import pytest

from mmdet.config.load import load_config
from mmdet.engine.runner import build_runner
from mmdet.engine.seeding import set_seed
from mmdet.engine.work_dir import enter_work_dir


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch, on_the_cpu):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')


@pytest.fixture
def train():
    """train(config file, work_dir, options, resume) -> the Runner after training, as tools/train.py does it."""

    def run(config, work_dir='run', options=None, resume=False, seed=0, hooks=()):
        cfg = load_config(config, options)
        cfg.work_dir = str(work_dir)
        resume_from = enter_work_dir(cfg, resume)
        set_seed(cfg, seed, False, resume_from)
        runner = build_runner(cfg, 'none', resume_from)
        for hook in hooks:
            runner.register_hook(hook, priority='VERY_HIGH')
        runner.train()
        return runner

    return run
