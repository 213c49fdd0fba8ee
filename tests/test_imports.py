"""Imports run one way through the rooms of the package, take no time, and say nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = {'version', 'registry', 'config', 'ops', 'structures'}
PARTS = BASE | {'layers', 'checkpoints', 'models', 'datasets', 'evaluation', 'visualization'}
# room: the rooms it may import besides itself. A room that is missing here fails the test.
ALLOWED = {
    'version': set(),
    'registry': {'config'},  # config.shipped alone, which imports nothing of the package
    'config': {'version', 'registry'},
    'ops': {'version', 'config'},
    'structures': {'registry', 'config', 'ops'},
    'layers': BASE,
    'checkpoints': BASE,
    'models': BASE | {'layers', 'checkpoints'},
    'datasets': BASE,
    'evaluation': BASE,
    'visualization': BASE,
    'engine': PARTS,
    'apis': PARTS | {'engine'},
    'cli': PARTS | {'engine', 'apis'},
    'utils': {'version', 'structures', 'config', 'apis'},
    'moved': {'config'},
    '__init__': {'version', 'moved'},
    '__main__': {'cli'},
}


def imported_names(path: Path, here: tuple[str, ...] = ()) -> set[str]:
    """Dotted names of everything a file imports, inside functions too; `here` is its own name, for relative imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            origin = list(here[: len(here) - node.level]) if node.level else []
            origin = [*origin, *(node.module or '').split('.')] if node.module else origin
            names |= {'.'.join([*origin, alias.name]) for alias in node.names}
    return names


def imported_rooms(path: Path, package: Path) -> set[str]:
    """First components below mmdet of everything a file imports."""
    names = imported_names(path, ('mmdet', *path.relative_to(package).with_suffix('').parts))
    rooms = {name.split('.')[1] for name in names if name.startswith('mmdet.')}
    return rooms | {name.split('.')[0] for name in names} & {'tools', 'tests', 'benchmarks', 'projects'}


def backwards(package: Path) -> list[str]:
    """'file imports room' for every arrow that runs backwards."""
    found = []
    for path in sorted(package.rglob('*.py')):
        room = path.relative_to(package).parts[0].removesuffix('.py')
        allowed = ALLOWED.get(room, set()) | {room}
        known = {p.name.removesuffix('.py') for p in package.iterdir()} | {'tools', 'tests', 'benchmarks', 'projects'}
        for target in imported_rooms(path, package) & known - allowed:
            found.append(f'{path.relative_to(package.parent)} imports {target}')
    return found


def test_arrows_run_one_way():
    assert backwards(ROOT / 'mmdet') == []


def test_every_room_has_its_arrows():
    rooms = {p.name.removesuffix('.py') for p in (ROOT / 'mmdet').iterdir() if p.suffix == '.py' or p.is_dir()}
    assert rooms - {'__pycache__'} <= set(ALLOWED)


def test_tests_benchmarks_and_projects_stand_alone():
    """Makers that several need are in tests/factories.py, in benchmarks/common.py, or in the project itself."""
    tests = {path.stem for path in (ROOT / 'tests').rglob('*.py')} | {'tests'}
    benchmarks = {path.stem for path in (ROOT / 'benchmarks').glob('*.py')} | {'benchmarks'}
    foreign = dict(benchmarks=tests - benchmarks, projects=tests | benchmarks, tests={'benchmarks'})
    for folder, names in foreign.items():
        for path in (ROOT / folder).rglob('*.py'):
            imported = imported_names(path, path.relative_to(ROOT).with_suffix('').parts)
            assert not {name.split('.')[0] for name in imported} & names, path


@pytest.mark.parametrize(
    'room, line',
    [
        ('models', 'from mmdet.datasets import CocoDataset'),
        ('models', 'from ..datasets.coco import CocoDataset'),
        ('datasets', 'import mmdet.models.backbones.resnet'),
        ('evaluation', 'def f():\n    from mmdet import datasets'),
        ('layers', 'from ..models import resnet'),
        ('config', 'import tools.train'),
    ],
)
def test_an_arrow_backwards_is_found(tmp_path, room, line):
    package = tmp_path / 'mmdet'
    for name in ALLOWED.keys() - {'version', 'registry', '__init__'}:
        (package / name).mkdir(parents=True)
        (package / name / 'file.py').write_text('import torch\n')
    assert backwards(package) == []
    (package / room / 'file.py').write_text(line + '\n')
    assert len(backwards(package)) == 1


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)


def test_import_is_quick_and_silent():
    code = 'import time\nimport torch, mmengine\nt = time.process_time()\nimport mmdet\nprint(time.process_time() - t)'
    result = run(code)
    assert float(result.stdout) < 0.3 and result.stderr == ''


def test_a_start_takes_with_it_only_what_it_needs():
    """Each of these costs a tenth of a second to two seconds: they wait until they are needed."""
    code = """
import sys
import mmdet.cli.train, mmdet.engine.runner, mmdet.models, mmdet.datasets, mmdet.evaluation, mmdet.apis
print(*sorted({'torch._dynamo', 'torch._inductor', 'triton', 'torchvision', 'matplotlib.pyplot', 'hotcoco'}
              & set(sys.modules)))
"""
    assert run(code).stdout.split() == []


def test_rooms_say_nothing_when_imported():
    code = """
import warnings
warnings.simplefilter('error', UserWarning)
warnings.filterwarnings('ignore', message='.*compiled ops are not used.*')
import mmdet.config.load, mmdet.engine.runner, mmdet.engine.hooks, mmdet.cli.parser, mmdet.apis
import mmdet.models, mmdet.datasets, mmdet.evaluation, mmdet.visualization
"""
    result = run(code)
    assert result.stdout == '' and result.stderr == ''
