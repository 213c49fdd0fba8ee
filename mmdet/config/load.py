"""Loading a config with errors a person can act on.

mmengine accepts a misspelt key silently, reports a syntax error without its file, takes a config that
imports ``os`` for its other, lazy kind, and ignores an override of a variable whose value was already
copied elsewhere. Everything here can go when ``Config.fromfile`` does these checks itself.
"""

import ast
import difflib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import Registry

from mmdet.config.auto import fill_num_classes
from mmdet.config.data_files import SUFFIXES, check_data, check_placeholders, configs_are_read
from mmdet.config.errors import UserError, at_most, one_line, say, suggest, unknown_type_text
from mmdet.config.legacy import is_legacy, modern_path, translate
from mmdet.config.mmdet3 import KEYS_OF_2X, adopt, spell_out_offsets
from mmdet.config.shipped import ZOO, base_path, find_config, shipped_names
from mmdet.config.short_data import expand_data
from mmdet.config.text import read_text
from mmdet.config.values import walk
from mmdet.config.variables import RUN_KEYS, carried, files_inherit_variables, is_carried, places_of
from mmdet.registry import registered_class

# Variables that configs of this vocabulary define for themselves.
_HELPER_KEYS = {
    'backend_args', 'base_batch_size', 'classes', 'data_root', 'dataset_type', 'img_norm_cfg', 'img_scale',
    'img_scales', 'max_epochs', 'metainfo', 'norm_cfg', 'num_classes', 'test_pipeline', 'train_pipeline',
    'val_pipeline', 'vis_backends',
}  # fmt: skip

def load_config(path: str | Path, cfg_options: dict[str, Any] | None = None) -> Config:
    """Read a config with its bases and ``custom_imports``, apply ``--cfg-options``, and check its top-level keys.

    Args:
        path: a .py file, which is code, or a .json or .yaml file, which is data (see `mmdet.config.data_files`).
        cfg_options: dotted paths into the config and their new values, which are data. ``data_root`` and dict or list
            variables such as ``norm_cfg`` are replaced wherever the config file used them (see
            `mmdet.config.variables`).

    Raises:
        UserError: missing file, syntax error, unknown base or module, misspelt key, an option whose place does not
            exist, or data that asks for code; the message names the file and line or the key and the nearest known
            name.
    """
    path = modern_path(find_config(str(path)))
    _check_files(path)
    try:
        with configs_are_read(), files_inherit_variables():
            # lazy_import=False: mmengine takes any config that imports os or math for a lazy one.
            cfg = Config.fromfile(path, lazy_import=False, import_custom_modules=False,
                                  use_environment_variables=not path.endswith(SUFFIXES))
    except UserError as error:
        raise UserError(f'{path}: {error}') from error
    except Exception as error:
        place = _place(error) or f'{path}: '
        raise UserError(f'{place}{type(error).__name__}: {one_line(error)}') from error
    _import_custom(cfg.get('custom_imports'), path)
    _name_classes(cfg._cfg_dict)
    return _complete(cfg, path, cfg_options)


def _name_classes(cfg: dict) -> None:
    """Write a class that stands for a type as its name, in place: a config is printed and saved as text. It is the name
    under which it, or what this package has made of it, is registered, else where it is imported from."""
    for node in [cfg, *(value for _, value in walk(cfg) if isinstance(value, dict))]:
        kind = node.get('type')
        if callable(kind) and '<' not in kind.__qualname__:
            found = registered_class(kind.__name__)
            ours = isinstance(found, type) and isinstance(kind, type) and issubclass(found, kind)
            node['type'] = kind.__name__ if ours else f'{kind.__module__}.{kind.__qualname__}'


def load_text(text: str, origin: str, cfg_options: dict[str, Any] | None = None) -> Config:
    """The same for the text of a config, which is data: what a checkpoint holds (see `mmdet.config.text`)."""
    return _complete(Config(read_text(text, origin)), origin, cfg_options)


def _complete(cfg: Config, path: str, cfg_options: dict[str, Any] | None) -> Config:
    """Of any version's vocabulary and without --cfg-options -> the config that is built from."""
    cfg_options = expand_data(cfg, cfg_options)
    if is_legacy(cfg):
        cfg = Config(translate(cfg.to_dict(), path), filename=cfg.filename)
    _check_keys(cfg, path)
    if cfg_options:
        _apply_options(cfg, cfg_options)
    cfg.setdefault('default_scope', 'mmdet')
    adopt_vocabulary(cfg)
    return cfg


def adopt_vocabulary(cfg: Config) -> None:
    """Drop what mmdetection's configs may write and has one meaning here, write `dcn_offset_lr_mult` as mmengine's
    `custom_keys`, and fill in ``num_classes='auto'``.

    Raises:
        UserError: an option of mmdetection with another meaning, or no data set that counts its classes.
    """
    for key in cfg:
        adopt(cfg[key], key)
    spell_out_offsets(cfg.get('optim_wrapper'))
    fill_num_classes(cfg)


_custom: dict[str, str] = {}  # name of each module that a config's folder or the working folder had, and its file


def _import_custom(custom: dict | None, path: str) -> None:
    """Import what ``custom_imports`` names, from the config's folder, the working folder, or where Python looks.

    Both folders stay in sys.path, for what those files import themselves and for processes that unpickle it.

    Raises:
        UserError: no such module. An error inside a module is left as it is.
    """
    if not custom:
        return
    if not isinstance(custom, dict) or not set(custom) <= {'imports', 'allow_failed_imports'}:
        raise UserError(f"{path}: custom_imports={custom!r} must be dict(imports=['my_module'])")
    folders = [os.path.dirname(os.path.abspath(path)), os.getcwd()]
    sys.path += [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
    names = custom.get('imports') or []
    for name in [names] if isinstance(names, str) else names:
        try:
            _import_nearest(name.partition('.')[0], folders, path)
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f'{name}.'.startswith(f'{error.name}.'):
                raise  # something that the module imports
            text = f'{path}: custom_imports: there is no module {name!r} in {" or ".join(folders)}, nor in PYTHONPATH'
            if not custom.get('allow_failed_imports'):
                raise UserError(text) from error
            say(text)


def _import_nearest(name: str, folders: list[str], path: str) -> None:
    """Import a module of `folders`, if there is one, before Python finds another one of that name elsewhere."""
    spec = PathFinder.find_spec(name, folders)
    if spec is None or spec.origin is None:
        return
    if _custom.get(name, spec.origin) != spec.origin:
        raise UserError(f'{path}: custom_imports: {name} is {spec.origin} here, and {_custom[name]} has been imported '
                        'under that name; rename one of them')
    if name not in sys.modules:
        _custom[name] = spec.origin
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name], _custom[name]
            raise


def _place(error: BaseException) -> str:
    """'FILE line N: ' of the config, or of the file it imports, in which the error was raised."""
    trace, place = error.__traceback__, ''
    while trace is not None:
        if trace.tb_frame.f_code.co_name == '<module>':
            place = f'{trace.tb_frame.f_code.co_filename} line {trace.tb_lineno}: '
        trace = trace.tb_next
    return place


def _check_files(path: str, chain: tuple[str, ...] = ()) -> None:
    """Check that a config and all its bases exist and parse, before mmengine copies them about."""
    named_in = f' (a _base_ of {chain[-1]})' if chain else ''
    if os.path.isdir(path):
        raise UserError(f'{path} is a folder; a config file is needed{named_in}')
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or '.'
        siblings = os.listdir(folder) if os.path.isdir(folder) else []
        hint = suggest(os.path.basename(path), [s for s in siblings if s.endswith('.py')]) or suggest(
            path.removeprefix('mmdet::').removeprefix('configs/').removesuffix('.py'), shipped_names())
        zoo = f' Of mmdetection\'s model zoo there are {", ".join(ZOO)} here.' if path.endswith('_coco') else ''
        raise UserError(f'config file {path} not found{named_in}.{zoo or hint}')
    resolved = os.path.abspath(path)
    if resolved in chain:
        raise UserError(f'{path}: the _base_ files form a circle: {" -> ".join((*chain, resolved))}')
    if not path.endswith(('.py', *SUFFIXES)):
        raise UserError(f'{path}: a config is a .py, .json or .yaml file')
    try:
        text = Path(path).read_text(encoding='utf-8')
        if not path.endswith('.py'):
            return check_placeholders(path, text) if chain else None
        tree = ast.parse(text, filename=path)
    except SyntaxError as error:
        line = (error.text or '').strip()
        raise UserError(f'{path} line {error.lineno}: {error.msg}: {line}') from error
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not a text in UTF-8: {error.reason} at byte {error.start}') from error
    for base in _bases(tree, path):
        if '::' in base and not base.startswith('mmdet::'):
            raise UserError(f'{path}: _base_ {base!r} names a config of another package; copy that config '
                            'into this project and give a relative path')
        _check_files(os.path.normpath(base_path(base, path)), (*chain, resolved))


def _bases(tree: ast.Module, path: str) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', None) == '_base_':
            try:
                value = ast.literal_eval(node.value)
            except ValueError:
                return []  # computed: left to mmengine
            bases = list(value) if isinstance(value, (list, tuple)) else [value]
            if not all(isinstance(base, str) for base in bases):
                raise UserError(f'{path} line {node.lineno}: _base_ must be a path or a list of paths')
            return bases
        if isinstance(node, ast.With) and 'read_base' in ast.dump(node.items[0]):
            raise UserError(f'{path} line {node.lineno}: `with read_base()` configs are not supported; '
                            "use _base_ = ['relative/path.py'] or ['mmdet::folder/recipe.py']")
    return []


def _near(key: str, known: set[str]) -> str | None:
    """The known name that `key` most likely misspells, or None where it is a name of its own."""
    if key in known or any(key.startswith(k + '_') or key.endswith('_' + k) for k in known):
        return None
    best = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
    return best[0] if best else None


def _check_keys(cfg: Config, path: str) -> None:
    old = [key for key in KEYS_OF_2X if key in cfg and not _is_used(cfg.to_dict(), key)]
    if old:
        raise UserError(f'{path}: the top-level key {old[0]!r} is of mmdetection 2.x; configs here are those of 3.x, '
                        f'which has {KEYS_OF_2X[old[0]]} instead')
    for key in cfg:
        near = _near(key, RUN_KEYS | _HELPER_KEYS)
        if near:
            raise UserError(f'{path}: unknown top-level key {key!r}. Did you mean {near}?')


def _is_used(cfg: dict, key: str) -> bool:
    """Whether a top-level value appears elsewhere too, as that of a config file's own variable does."""
    return any(value == cfg[key] for path, value in walk(cfg) if path.split('.')[0] != key)


def _apply_options(cfg: Config, options: dict[str, Any]) -> None:
    check_data(options, '--cfg-options')
    for dotted, value in options.items():
        _check_option(cfg, dotted)
        top = dotted.split('.')[0]
        helper = top not in RUN_KEYS and top in cfg
        before = cfg.to_dict().get(top) if helper else None
        if isinstance(value, dict) and dict(walk(cfg.to_dict())).get(dotted, '') is None:
            value = {**value, '_delete_': True}  # mmengine merges a dict into a dict alone
        try:
            cfg.merge_from_dict({dotted: value})
        except (KeyError, TypeError) as error:
            raise UserError(f'--cfg-options {dotted}={value}: {one_line(error)}') from error
        if helper:
            _replace_copies(cfg, top, before, dotted)


def _check_option(cfg: Config, dotted: str) -> None:
    node: Any = cfg
    *parents, leaf = dotted.split('.')
    if parents and parents[0] not in cfg and parents[0] in RUN_KEYS:
        return  # a new part, as randomness.seed may be
    for depth, key in enumerate(parents):
        here = '.'.join(parents[:depth]) or 'the config'
        if isinstance(node, dict) and node.get(key, '') is None:
            whole = f"{here}.{key}={{'{leaf}': ...}}"
            raise UserError(f'--cfg-options {dotted}: {here}.{key} is None and has no keys; give it whole: "{whole}"')
        node = _step(node, key, here, dotted)
        if node is None:
            return
    if isinstance(node, (list, tuple)):
        _step(node, leaf, '.'.join(parents), dotted)
    elif isinstance(node, (dict, Config)):
        keys = set(node) | (RUN_KEYS if node is cfg else set())
        if node is cfg and leaf not in keys:
            raise UserError(f'--cfg-options {dotted}: no such top-level key.{suggest(leaf, keys)}')
        near = None if leaf.startswith('_') else _near(leaf, keys)
        if near:
            raise UserError(f'--cfg-options {dotted}: {".".join(parents)} has no key {leaf!r}. Did you mean '
                            f'{near}? (A new key with so near a name can be added in a config file.)')
    else:
        raise UserError(f'--cfg-options {dotted}: {".".join(parents)} is {node!r}, which has no keys')


def _step(node: Any, key: str, here: str, dotted: str) -> Any:
    if isinstance(node, (list, tuple)):
        if not key.isdigit() or int(key) >= len(node):
            raise UserError(f'--cfg-options {dotted}: {here} is a list of {len(node)}; '
                            f'{key!r} is not an index of it')
        return node[int(key)]
    if not isinstance(node, (dict, Config)):
        raise UserError(f'--cfg-options {dotted}: {here} is {node!r}, which has no key {key!r}')
    if key not in node:
        hint = suggest(key, node, cutoff=0.7)
        if isinstance(node, dict) and not hint:
            return None  # a new part, as train_dataloader.dataset.metainfo.classes may be
        raise UserError(f'--cfg-options {dotted}: {here} has no key {key!r}.{hint}')
    return node[key]


def _replace_copies(cfg: Config, name: str, before: Any, dotted: str) -> None:
    """Carry a changed variable of the config file to the places that were given its old value."""
    whole = cfg.to_dict()
    if not is_carried(before):
        users = places_of(whole, name, before)
        hint = f'; set {at_most(users, 3)} instead' if users else ''
        raise UserError(f'--cfg-options {dotted}: {name} is a variable of the config file whose value was '
                        f'already used, changing it has no effect{hint}')
    changed, count = carried(whole, name, before, whole[name])
    if not count:
        say(f'--cfg-options {dotted}: {name} is a variable of the config file, and its value is nowhere else in the '
            'config: the change reaches nothing')
    for key, value in changed.items():
        cfg[key] = value


_PIPELINE = r'(train|val|test)_dataloader(\.dataset)+(\.datasets\.\d+)?\.pipeline\.\d+'
# Which registry the `type` at a place of the config belongs to: the last pattern part is the parent key.
_PLACES = [
    (r'model(\.(data_preprocessor|backbone|neck|rpn_head|roi_head|roi_head\.\w+_head))?', 'MODELS'),
    (r'(train|val|test)_dataloader(\.dataset)+(\.datasets\.\d+)?', 'DATASETS'),
    (_PIPELINE + r'(\.transforms(\.\d+){2})*', 'TRANSFORMS'),
    (r'test_cfg\.tta_model', 'MODELS'),
    (r'(train|val|test)_dataloader\.(batch_)?sampler', 'DATA_SAMPLERS'),
    (r'(train|val|test)_dataloader\.(collate_fn|worker_init_fn)', 'FUNCTIONS'),
    (r'(val|test)_evaluator((\.metrics)?\.\d+)?', 'METRICS'),
    (r'optim_wrapper', 'OPTIM_WRAPPERS'),
    (r'optim_wrapper\.optimizer', 'OPTIMIZERS'),
    (r'param_scheduler(\.\d+)?', 'PARAM_SCHEDULERS'),
    (r'default_hooks\.\w+|custom_hooks\.\d+', 'HOOKS'),
    (r'visualizer', 'VISUALIZERS'),
    (r'visualizer\.vis_backends\.\d+', 'VISBACKENDS'),
]
_NEED_NO_TYPE = ('optim_wrapper', 'visualizer')  # they have a default


def check_types(cfg: Config) -> None:
    """Check every ``type`` whose registry its place decides, before anything expensive is built.

    Raises:
        UserError: names the type, its place in the config, and the nearest registered names; or a part without one.
    """
    for path, value in walk(cfg.to_dict()):
        for pattern, name in _PLACES:
            if re.fullmatch(pattern, path):
                _check_part(value, path, name)


def _check_part(value: Any, path: str, name: str) -> None:
    from mmdet import registry

    if isinstance(value, (str, int, float)):
        name = repr(value) if isinstance(value, str) else '...'
        raise UserError(f'{path}={value!r}: write it as dict(type={name})')
    if not isinstance(value, dict):
        return
    if name == 'METRICS' and 'metrics' in value:
        name, value = 'EVALUATOR', dict(dict(type='Evaluator'), **value)
    kind = value.get('type')
    if 'type' in value and not isinstance(kind, str) and not callable(kind):
        raise UserError(f'{path}.type={kind!r}: the name of a type is needed')
    if isinstance(kind, str):
        _check_type(getattr(registry, name), value['type'], f'{path}.type')
    elif 'type' not in value and path not in _NEED_NO_TYPE:
        raise UserError(f'{path} has no type; its keys are {at_most(map(str, value))}')


def _check_type(registry: Registry, value: str, path: str) -> None:
    if registry.get(value) is not None:
        return
    known = set(registry.module_dict)
    if registry.parent is not None:
        known |= set(registry.parent.module_dict)
    raise UserError(unknown_type_text(value, f' at {path}', known))


def type_places(cfg: Config, name: str) -> list[str]:
    """Paths of the config at which ``type`` is `name`."""
    return [path for path, value in walk(cfg.to_dict()) if path.endswith('type') and value == name]


def changed_keys(old: dict, new: dict, ignore: set[str]) -> list[str]:
    """Dotted keys at which two resolved configs differ, at their deepest common place."""

    def plain(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else value

    def differences(a: Any, b: Any, path: str) -> Iterator[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            for key in sorted(set(a) | set(b), key=str):
                if path or key not in ignore:
                    yield from differences(a.get(key), b.get(key), f'{path}.{key}' if path else str(key))
        elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            for index, (left, right) in enumerate(zip(a, b)):
                yield from differences(left, right, f'{path}.{index}')
        elif a != b:
            yield path

    return list(differences(plain(old), plain(new), ''))
