"""The release's command lines, and mmdetection 1.x's and 2.x's."""

import pytest

from mmdet.cli import test, train
from mmdet.cli.legacy import modern_arguments
from mmdet.config.errors import UserError


def test_the_releases_lines(capsys):
    args = train.parse_args('c.py --gpus 4 --validate --work_dir w --resume_from a/latest.pth --seed 3'.split())
    assert (args.work_dir, args.resume, args.gpus, args.seed) == ('w', 'a/latest.pth', 4, 3)
    assert capsys.readouterr().err == (
        'options of older versions: --validate is the default: the config has a val_dataloader or not; '
        '--work_dir is --work-dir; --resume_from is --resume\n'
    )
    args = test.parse_args('c.py x.pth --gpus 2 --proc_per_gpu 2 --out r.pkl --eval bbox segm'.split())
    assert (args.config, args.checkpoint, args.eval, args.out) == ('c.py', 'x.pth', ['bbox', 'segm'], 'r.pkl')


@pytest.mark.parametrize(
    'old, new',
    [
        ('c.py --work_dir=w', 'c.py --work-dir w'),
        ('c.py --options a=1 b=2', 'c.py --cfg-options a=1 b=2'),
        ('c.py --gpu-id 1 x.pth', 'c.py x.pth'),
        ('c.py --gpu-id=1 x.pth', 'c.py x.pth'),
        ('c.py --auto-resume --autoscale-lr', 'c.py --resume --auto-scale-lr'),
        ('c.py --no-validate', 'c.py --cfg-options val_dataloader=None val_cfg=None val_evaluator=None'),
    ],
)
def test_words_of_other_versions(old, new):
    assert modern_arguments(old.split()) == new.split()


def test_todays_words_pass_in_silence(capsys):
    words = ['c.py', '--work-dir', 'w', '--cfg-options', 'a=--work_dir']
    assert modern_arguments(words) == words and capsys.readouterr() == ('', '')
    with pytest.raises(UserError, match='unrecognized arguments: --validat'):
        train.parse_args(['c.py', '--validat'])
