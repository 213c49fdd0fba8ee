"""What the documentation site holds beside docs/: pages from elsewhere in the repository, and pages made of docstrings.

mkdocs calls the functions with `on_` in their names and mkdocstrings `Doctests`; mkdocs.yml names this file.
"""

import importlib
import inspect
import os
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
# Where a file of the repository stands in the site; what begins with a folder's name is below it.
PLACES = {
    'README.md': 'index.md', 'INSTALL.md': 'install.md', 'CHANGELOG.md': 'changelog.md',
    'CONTRIBUTING.md': 'contributing.md', 'projects/norm_study/': 'norm_study/',
    'projects/cbn_wheel/README.md': 'cbn_wheel.md', 'docs/': '',
}  # fmt: skip
ELSEWHERE = [
    'README.md', 'INSTALL.md', 'CHANGELOG.md', 'CONTRIBUTING.md', 'projects/cbn_wheel/README.md',
    'projects/norm_study/*.md', 'projects/norm_study/figures/*.png',
]  # fmt: skip
REFERENCE = {
    'models': ('Models, layers, losses', ['MODELS', 'TASK_UTILS']),
    'data': ('Data sets and transforms', ['DATASETS', 'DATA_SAMPLERS', 'TRANSFORMS']),
    'evaluation': ('Metrics', ['METRICS', 'EVALUATOR']),
    'engine': ('Hooks and loops', ['HOOKS', 'LOOPS', 'OPTIM_WRAPPERS', 'LOG_PROCESSORS', 'VISUALIZERS']),
}
API = ['mmdet.apis', 'mmdet.layers', 'mmdet.ops']
LINK = re.compile(r'(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)')


def place(path: str) -> str | None:
    """Of a file, by its path in the repository, the path in the site; None where the site has it not."""
    for source, target in PLACES.items():
        if path == source:
            return target
        if source.endswith('/') and path.startswith(source):
            return target + path.removeprefix(source)
    return None


def relinked(text: str, path: str) -> str:
    """A page of the repository with links that hold in the site; a link to a file that it has not becomes its text."""
    here = os.path.dirname(place(path) or '')

    def link(match: re.Match) -> str:
        if '://' in match['target']:
            return match[0]
        target = place(os.path.normpath(os.path.join(os.path.dirname(path), match['target'])))
        if target is None or target.endswith('/') or not os.path.splitext(target)[1]:
            return match['text']
        return f"{match['image']}[{match['text']}]({os.path.relpath(target, here or '.')}{match['anchor'] or ''})"

    return LINK.sub(link, text)


def registered(registries: list[str]) -> dict[type, list[str]]:
    """The classes of this package in some registries, with their names there."""
    registry = importlib.import_module('mmdet.registry')
    names: dict[type, list[str]] = {}
    for name in registries:
        found = getattr(registry, name)
        found.import_from_location()
        for key, value in found.module_dict.items():
            if value.__module__.startswith('mmdet.') and inspect.isclass(value):
                names.setdefault(value, []).append(key)
    return names


def reference(title: str, registries: list[str]) -> str:
    """A page with each registered class of this package: names, first sentence, arguments."""
    names = registered(registries)
    classes = sorted(names, key=lambda each: names[each][0].lower())
    rows = [f'| [`{"`, `".join(names[each])}`][{_path(each)}] | {_first_sentence(each)} |' for each in classes]
    parts = [f'::: {_path(each)}\n' for each in classes]
    return '\n'.join([f'# {title}\n', "`dict(type=NAME, ...)` in a config: each name, and below it the options.\n",
                      '| type | what it is |', '|---|---|', *rows, '', *parts])  # fmt: skip


def api() -> str:
    """A page with what `mmdet.apis`, `mmdet.layers` and `mmdet.ops` export."""
    parts = ['# API\n']
    elsewhere = {each for _, registries in REFERENCE.values() for each in registered(registries)}
    for name in API:
        module = importlib.import_module(name)
        parts.append(f'## {name}\n\n{inspect.getdoc(module) or ""}\n')
        exported = [getattr(module, each) for each in module.__all__]
        exported = list(dict.fromkeys(e for e in exported if inspect.isclass(e) or inspect.isfunction(e)))
        types = [f'[`{each.__name__}`][{_path(each)}]' for each in exported if each in elsewhere]
        parts += [f'Types of configs: {", ".join(types)}.\n'] if types else []
        parts += [f'::: {_path(each)}\n' for each in exported if each not in elsewhere]
    return '\n'.join(parts)


def _path(each: type) -> str:
    return f'{each.__module__}.{each.__qualname__}'


def _first_sentence(each: type) -> str:
    text = ' '.join((each.__doc__ or '').split('\n\n')[0].split())
    return re.split(r'(?<=[.!?]) (?=[A-Z`])', text)[0].replace('|', '\\|')


def on_files(files: Files, config) -> Files:
    for pattern in ELSEWHERE:
        for source in sorted(ROOT.glob(pattern)):
            path = source.relative_to(ROOT).as_posix()
            content = relinked(source.read_text(), path) if source.suffix == '.md' else source.read_bytes()
            files.append(File.generated(config, place(path), content=content))
    for name, (title, registries) in REFERENCE.items():
        files.append(File.generated(config, f'reference/{name}.md', content=reference(title, registries)))
    files.append(File.generated(config, 'reference/api.md', content=api()))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    source = page.file.abs_src_path  # None for what `on_files` made
    if source is None or not source.startswith(config.docs_dir):
        return markdown
    return relinked(markdown, Path(source).relative_to(ROOT).as_posix())


class Doctests(griffe.Extension):
    """Docstrings' ``>>>`` blocks as sections of examples, which mkdocstrings shows as code."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(
                r'(?:^>>> .*\n?(?:^(?!\s*$).*\n?)*\n*)+',
                lambda found: 'Examples:\n' + ''.join(f'    {line}\n' for line in found[0].strip().splitlines()),
                obj.docstring.value, flags=re.MULTILINE,
            )  # fmt: skip
