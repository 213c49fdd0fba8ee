"""mmdet benchmark: a table and a file of the same numbers."""

import json
import re

import factories
import pytest

from mmdet.cli.benchmark import main
from mmdet.config.errors import UserError


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('benchmark')
    factories.write_detector(folder)
    return folder


@pytest.mark.parametrize('words, size', [
    (['--size', '64', '90', '--batch', '2'], [64, 96]),  # padded, as the model sees it
    (['weights.pth', '--images', 'shapes', '--batch', '1'], [96, 96]),
])  # fmt: skip
def test_the_table_and_the_file(folder, monkeypatch, capsys, words, size):
    monkeypatch.chdir(folder)
    main(['config.py', *words, '--repeats', '2', '--device', 'cpu', '--json', 'costs.json'])
    out = capsys.readouterr().out
    costs = json.loads((folder / 'costs.json').read_text())
    assert costs['size'] == size and costs['batch'] == int(words[-1])
    rows = {cells[0]: cells[1:] for line in out.splitlines() if line.startswith('| ')
            for cells in [[cell.strip() for cell in line.strip('|').split('|')]]}
    assert list(rows) == ['stage', *costs['stages'], 'total'] and ('load' in rows) == ('--images' in words)
    for name, part in {**costs['stages'], 'total': costs}.items():
        if part['multiply_adds']:
            assert rows[name][1] == f'{part["multiply_adds"] / 1e9:.2f}'
        assert rows[name][3] == f'{1000 * part["seconds"]:.1f}'
    assert {'backbone', 'neck', 'rpn head', 'proposals', 'roi head', 'masks', 'postprocess'} < set(rows)
    assert costs['parameters'] == sum(part['parameters'] for part in costs['stages'].values())
    assert costs['images_per_second'] == pytest.approx(costs['batch'] / costs['seconds'])
    assert costs['memory_mib'] > 50 and re.search(r'[\d.]+ images/s, memory \d+ MiB at most', out)


@pytest.mark.parametrize('words, message', [
    (['--size', '64', '64', '--images', 'shapes'], '--size is of images of noise'),
    (['--batch', '0'], '--batch 0: at least 1 is needed'),
    (['--json', 'costs.txt'], 'must end with .json'),
    (['missing.pth'], 'missing.pth'),
    (['--images', 'nowhere', '--device', 'cpu'], 'nowhere: no such file or folder'),
])  # fmt: skip
def test_mistakes(folder, monkeypatch, words, message):
    monkeypatch.chdir(folder)
    with pytest.raises((UserError, FileNotFoundError), match=message):
        main(['config.py', *words])
