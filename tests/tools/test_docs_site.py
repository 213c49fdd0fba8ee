"""The documentation site: links of pages that move, and a build that warns of nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip('mkdocstrings', reason='mkdocs-material and mkdocstrings are not installed (make docs does it)')
sys.path.insert(0, str(ROOT / 'tools' / 'dev'))
import docs_site  # noqa: E402


@pytest.mark.parametrize('path, link, there', [
    ('README.md', '[x](docs/cbn.md#history)', '[x](cbn.md#history)'),
    ('README.md', '![x](docs/demo.jpg)', '![x](demo.jpg)'),
    ('docs/cbn.md', '[x](../README.md)', '[x](index.md)'),
    ('docs/cbn.md', '![x](../projects/norm_study/figures/a.png)', '![x](norm_study/figures/a.png)'),
    ('docs/extend/op.md', '[x](../ops.md)', '[x](../ops.md)'),
    ('projects/norm_study/README.md', '[x](study.md#a)', '[x](study.md#a)'),
    ('projects/norm_study/README.md', '[x](../../docs/cbn.md)', '[x](../cbn.md)'),
    ('docs/ops.md', '[a file](../setup.py)', 'a file'),
    ('docs/ops.md', '[paper](https://arxiv.org/abs/2002.05712)', '[paper](https://arxiv.org/abs/2002.05712)'),
])  # fmt: skip
def test_links_of_pages_that_stand_elsewhere_hold(path, link, there):
    assert docs_site.relinked(f'see {link}.', path) == f'see {there}.'


def test_every_registered_class_says_what_it_is():
    classes = [each for _, registries in docs_site.REFERENCE.values() for each in docs_site.registered(registries)]
    assert len(classes) > 80
    assert [each.__name__ for each in classes if not (each.__doc__ or '').strip()] == []


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, '-m', 'mkdocs', 'build', '--strict', '--quiet', '--site-dir', str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, env=dict(os.environ, NO_MKDOCS_2_WARNING='1'),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / 'reference' / 'models.html').read_text()
    assert 'compensation' in page and 'https://fonts' not in page
