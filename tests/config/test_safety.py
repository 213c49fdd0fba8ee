"""Configs that are data run no code: JSON, YAML and --cfg-options, through the command line."""

import json
import time
from pathlib import Path

import pytest
import yaml
from mmengine import registry as roots
from mmengine.config import Config
from toy_task import write_config

from mmdet import registry

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with a toy config, the same as YAML and JSON, and a module that leaves a mark when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'evil').mkdir()
    for name in ('__init__', 'registry'):
        (tmp_path / 'evil' / f'{name}.py').write_text("open('mark', 'w').close()\ndef call(*a, **k): pass\n")
    write_config(tmp_path)
    content = Config.fromfile('toy.py', lazy_import=False, import_custom_modules=False).to_dict()
    content.pop('custom_imports')
    Path('toy.json').write_text(json.dumps(content))
    Path('toy.yaml').write_text(yaml.safe_dump(content))
    yield tmp_path
    assert not Path('mark').exists(), 'code ran'


@pytest.fixture
def refused(run_tool):
    def refused(tool: str, *arguments) -> str:
        start = time.perf_counter()
        status, _, err = run_tool(tool, *arguments)
        assert status == 2 and err.startswith('error: ') and err.count('\n') == 1, err
        assert time.perf_counter() - start < 20
        return err

    return refused


def nested(levels: int) -> str:
    """Nine aliases to nine aliases to ...: 9 ** `levels` values in a few lines."""
    lines = ['a0: &a0 [1, 2, 3, 4, 5, 6, 7, 8, 9]']
    lines += [f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 9)}]' for i in range(1, levels)]
    return '\n'.join(lines)


@pytest.mark.parametrize(
    'text, message',
    [
        ("x: !!python/object/apply:os.system ['touch mark']", 'line 1: !!python/object/apply:os.system is not plain'),
        ("a: 1\nx: !!python/object/new:os.system ['touch mark']", 'line 2: !!python/object/new:os.system'),
        ('x: !!python/name:os.system', '!!python/name:os.system'),
        ('x: !!python/module:evil', '!!python/module:evil'),
        (nested(9), 'line 6: too large or too deep for a config'),
        (nested(9).replace('[', '[{<<: ').replace(', ', '}, {<<: ').replace(']', '}]'), 'too large or too deep'),
        ('x: &x [*x]', 'line 1: *x names nothing, or what it stands in'),
        ('x: ' + '[' * 50_000, 'line 1: '),
        ('x: ' + '[' * 900 + ']' * 900, 'too large or too deep'),
        ('x: ' + '1' + ':59' * 200_000, 'too large or too deep'),
        ('x: ' + 'a' * 2_000_000, 'too many for a config'),
        ('x: [', 'line 2: not YAML'),
        ('[1, 2]', 'a config is a mapping of keys to values, not a list'),
        ('_base_: code.py', "_base_ 'code.py': a JSON or YAML config runs no code, so its bases are .json"),
        ('_base_: [toy.yaml, "{{$NOWHERE:code.py}}"]', "_base_ 'code.py'"),
        ('custom_imports: {imports: [evil]}', 'custom_imports: a JSON or YAML config runs no code'),
        ('default_scope: evil', "default_scope='evil': a JSON or YAML config can choose mmdet or mmengine alone"),
        ('model: {_scope_: evil, type: x}', "_scope_='evil'"),
        ('x: {{$NOWHERE:}}', 'NOWHERE'),
    ],
)
@pytest.mark.parametrize('as_base', [False, True])
def test_yaml_that_is_more_than_data(refused, text, message, as_base):
    Path('code.py').write_text("open('mark', 'w').close()\n")
    Path('bad.yaml').write_text(text)
    Path('child.py').write_text("_base_ = 'bad.yaml'\n")
    file = 'child.py' if as_base else 'bad.yaml'
    assert f'error: {file}: ' in (error := refused('print_config.py', file)) and message in error


def test_bases_that_double_at_each_level_or_go_round(refused):
    for level in range(40):
        Path(f'{level}.yaml').write_text(f'_base_: [{level + 1}.yaml, {level + 1}.yaml]\n')
    Path('40.yaml').write_text('{}')
    Path('round.json').write_text('{"_base_": "round.json"}')
    for name in ('0.yaml', 'round.json'):
        assert f'{name}: _base_ leads to more than 100 files, or in a circle' in refused('print_config.py', name)


def test_placeholders_are_not_patterns(refused, run_tool):
    Path('bad.yaml').write_text('x: "{{$A:(a+)+b}}"\ny: "{{$A:' + 'a' * 60 + '"')
    Path('child.py').write_text("_base_ = 'bad.yaml'\n")
    status, out, _ = run_tool('print_config.py', 'bad.yaml')
    assert status == 0 and "x = '(a+)+b'" in out
    assert 'bad.yaml: {{$...:(a+)+b}}": a default without' in refused('print_config.py', 'child.py')


@pytest.mark.parametrize(
    'text, message',
    [
        ('{"x": ' + '[' * 100_000, 'too deep for a config'),
        ('{"x": ' + '[' * 900 + ']' * 900 + '}', 'too deep for a config'),
        ('{"x": ', 'line 1: not JSON'),
        ('[]', 'a config is a mapping'),
        ('{"_base_": ["code.py"]}', "_base_ 'code.py'"),
        ('{"_base_": "mmdet::code.json"}', "_base_ 'mmdet::code.json'"),
        ('{"custom_imports": {"imports": ["evil"]}}', 'custom_imports: a JSON or YAML config'),
        ('{"a": [{"_scope_": "evil"}]}', "_scope_='evil'"),
    ],
)
def test_json_that_is_more_than_data(refused, text, message):
    Path('code.py').write_text("open('mark', 'w').close()\n")
    Path('bad.json').write_text(text)
    assert message in refused('print_config.py', 'bad.json')


@pytest.mark.parametrize(
    'option, message',
    [
        ("custom_hooks=[{'type':'os.system','command':'touch mark'}]",
         "unknown type 'os.system' at custom_hooks.0.type: JSON and YAML configs and --cfg-options name registered"),
        ("custom_hooks=[{'type':'evil.call'}]", "unknown type 'evil.call'"),
        ("custom_hooks=[{'type':'evil'}]", "unknown type 'evil'"),
        ("custom_hooks=[{'type':'mmengine.utils.call_command','cmd':['touch','mark']}]", "'mmengine.utils.call_com"),
        ("custom_hooks=[{'type':'EMAHook','ema_type':'evil.call'}]", "unknown type 'evil.call'"),
        ('model.head.type=evil.call', "unknown type 'evil.call'"),
        ('optim_wrapper.constructor=evil.call', "unknown type 'evil.call'"),
        ("train_dataloader.collate_fn={'type':'evil.call'}", "'evil.call' at train_dataloader.coll"),
        ("train_dataloader.worker_init_fn={'type':'evil.call'}", "'evil.call' at train_data"),
        ('default_scope=evil', "default_scope='evil': --cfg-options can choose mmdet or mmengine alone"),
        ("custom_hooks=[{'type':'EMAHook','_scope_':'evil'}]", "_scope_='evil'"),
        ('model._scope_=evil', "_scope_='evil'"),
        ("custom_imports={'imports':['evil']}", 'custom_imports: --cfg-options runs no code'),
        ("custom_imports.imports=['evil']", 'custom_imports: --cfg-options runs no code'),
        ('x=' + '[' * 1500 + ']' * 1500, '--cfg-options'),
    ],
)  # fmt: skip
def test_options_that_are_more_than_data(refused, option, message):
    assert message in refused('train.py', 'toy.py', '--cfg-options', option)


@pytest.mark.parametrize('name', ['toy.json', 'toy.yaml'])
def test_types_of_data_come_from_the_registries(refused, name):
    text = Path(name).read_text()
    Path(name).write_text(text.replace('LinearLR', 'evil.call'))
    assert "unknown type 'evil.call' at param_scheduler.0.type: JSON and YAML" in refused('train.py', name)
    Path(name).write_text(text.replace('DefaultSampler', 'evil'))
    assert "_dataloader.sampler.type" in refused('train.py', name)


@pytest.mark.parametrize('name', ['toy.json', 'toy.yaml'])
def test_data_that_is_data_trains(name, run_tool):
    status, out, err = run_tool('train.py', name, '--work-dir', 'run', '--cfg-options',
                            'optim_wrapper.optimizer.type=mmengine.SGD')  # fmt: skip
    assert status == 0 and Path('run/epoch_2.pth').exists(), out + err


def test_what_yaml_may_do(monkeypatch, run_tool):
    Path('base.yaml').write_text('x: &x {a: 1}\ny: {<<: *x, b: 2}\nz: !!python/tuple [1, 2]\nroot: "{{$HERE:a/b}}"\n')
    Path('child.yaml').write_text('_base_: base.yaml\ny: {b: 3}\nname: "{{ fileBasenameNoExtension }}"\nn: {{$N:80}}\n')
    monkeypatch.setenv('HERE', 'there')
    status, out, _ = run_tool('print_config.py', 'child.yaml')
    values: dict = {}
    exec(out, {'dict': dict}, values)
    assert status == 0
    assert {key: values[key] for key in 'xyzn'} == dict(x=dict(a=1), y=dict(a=1, b=3), z=(1, 2), n=80)
    assert values['root'] == 'there' and values['name'] == 'child'


def test_a_python_config_may_name_any_class(run_tool):
    Path('mine.py').write_text('from mmengine.hooks import Hook\nclass Mine(Hook):\n    def before_run(self, runner):\n'
                               "        print('Mine was here')\n")  # fmt: skip
    write_config(Path(), text="custom_hooks = [dict(type='mine.Mine')]\n")
    status, out, err = run_tool('train.py', 'toy.py', '--work-dir', 'run')
    assert status == 0 and 'Mine was here' in out, err


def test_every_registry_of_mmengine_has_ours_below_it():
    names = {name for name, value in vars(roots).items() if isinstance(value, roots.Registry)}
    assert names <= {name for name, value in vars(registry).items() if isinstance(value, roots.Registry)}
