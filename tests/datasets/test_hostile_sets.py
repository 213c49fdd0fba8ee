"""Data sets that would write elsewhere or take all memory, through the command line."""

import json
import resource
import struct
import zlib
from pathlib import Path

import pytest
from small_set import content, write_set


def png_of_zeros(width: int, height: int) -> bytes:
    """A hundred kilobytes that decode to width x height black pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    packer, rows = zlib.compressobj(1), bytes((width // 8 + 2) * 1000)
    data = b''.join(packer.compress(rows) for _ in range(height // 1000 + 1)) + packer.flush()
    header = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}


def test_drawings_stay_in_their_folder(call, weights, tmp_path):
    """Names with '..', absolute names, names without an image's ending, and two entries of one file are read where they
    are; nothing is written but below --show-dir, and no drawing over another."""
    hostile = content(6)
    names = ['1.png', '../../x.png', str(tmp_path / 'elsewhere' / 'x.png'), '1.png', 'sub/1.png', '../../../run.sh']
    for image, name in zip(hostile['images'], names):
        image['file_name'] = name
    root = tmp_path / 'a' / 'b'
    write_set(hostile, root / 'set')
    before = files_below(tmp_path)
    call('test.py', 'config.py', weights, '--show-dir', 'out/show', '--work-dir', 'work', '--cfg-options',
         f'test_dataloader.dataset.data_root={root / "set"}', f'test_evaluator.ann_file={root / "set/instances.json"}')
    written = {name for name in files_below(tmp_path) - before if not name.startswith('work/')}
    assert written == {
        'out/show/' + name
        for name in ('a/b/set/images/1.png', 'a/b/x.png', 'elsewhere/x.png', 'a/b/set/images/1_2.png',
                     'a/b/set/images/sub/1.png', 'a/run.sh.png')
    }  # fmt: skip


def test_distinct_names_need_no_folders(call, weights):
    distinct = content(2)
    distinct['images'][1]['file_name'] = '../../x.png'
    write_set(distinct)
    call('test.py', 'config.py', weights, '--show-dir', 'show')
    assert files_below(Path('show')) == {'1.png', 'x.png'}


def test_drawings_do_not_overwrite_the_data(call, refused, weights):
    write_set(content())
    before = Path('set/images/1.png').read_bytes()
    for tool, options in (('test.py', ['config.py', weights, '--show-dir', 'set/images/']),
                          ('predict.py', ['config.py', weights, 'set/images', '--out-dir', 'set/images'])):  # fmt: skip
        assert 'set/images/1.png; choose another folder' in refused(tool, *options)
    assert Path('set/images/1.png').read_bytes() == before


def test_predictions_of_two_folders_do_not_overwrite_each_other(call, weights):
    for name in ('a', 'b'):
        write_set(content(1), Path(name))
    call('predict.py', 'config.py', weights, 'a', 'b/../b/images/1.png', '--device', 'cpu')
    assert files_below(Path('predictions')) == {
        'a/images/1.png', 'b/images/1.png', 'predictions.csv', 'predictions.json'
    }  # fmt: skip


@pytest.mark.parametrize('tool, options', [
    ('train.py', ['config.py']),
    ('test.py', ['config.py', 'WEIGHTS']),
    ('predict.py', ['config.py', 'WEIGHTS', 'set/images/1.png', '--device', 'cpu']),
    ('browse.py', ['config.py']),
])  # fmt: skip
def test_an_oversized_image_is_refused_before_it_is_decoded(call, weights, tool, options):
    huge = content(1)
    write_set(huge)
    huge['images'][0].update(width=30000, height=30000)
    Path('set/instances.json').write_text(json.dumps(huge))
    Path('set/images/1.png').write_bytes(png_of_zeros(30000, 30000))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out, err = call(tool, *(weights if option == 'WEIGHTS' else option for option in options), status=2)
    assert '1.png has 30000 x 30000 = 900 megapixels, more than max_megapixels=200 of LoadImageFromFile' in err
    assert 'Traceback' not in err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6  # kilobytes
