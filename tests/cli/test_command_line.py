"""What a person types after a tool's name."""

import pytest

from mmdet.cli.parser import Parser
from mmdet.config.errors import UserError


def options(*words):
    parser = Parser('A tool.')
    parser.add_config_arguments('a=1')
    parser.add_argument('--work-dir')
    return parser.parse_args(['config.py', *words])


def test_values_of_options():
    words = ['a=1', 'b=0.5', 'c=true', 'd=None', 'e=1333,800', 'f=[a,b]', "g=[{'type': 'X'}, 2]", "h={'k': (1, 2)}"]
    assert options('--cfg-options', *words, 'i=x=y').cfg_options == dict(
        a=1, b=0.5, c=True, d=None, e=[1333, 800], f=['a', 'b'], g=[{'type': 'X'}, 2], h={'k': (1, 2)}, i='x=y'
    )
    assert options('--cfg-options', 'a=1', '--cfg-options', 'b=2').cfg_options == dict(a=1, b=2)


@pytest.mark.parametrize(
    'words, expected',
    [
        (['--work_dir', 'x'], 'unrecognized arguments: --work_dir x. Did you mean --work-dir?'),
        (['--tta'], 'unrecognized arguments: --tta. There is no test-time augmentation here'),
        (['--show'], 'unrecognized arguments: --show. Pictures are drawn into files: --show-dir FOLDER'),
        (['--cfg-options'], 'argument --cfg-options: expected at least one argument'),
        (['--cfg-options', 'a'], '--cfg-options a: KEY=VALUE is needed'),
        (['--cfg-options', 'a=[1,2'], '--cfg-options a=[1,2: Imbalanced brackets'),
        (['--cfg-options', 'a={b: 1}'], '{b: 1} is not a Python value'),
    ],
)
def test_mistakes(words, expected):
    with pytest.raises(UserError) as caught:
        options(*words)
    assert expected in str(caught.value) and '\n' not in str(caught.value) and '--help' in str(caught.value)
