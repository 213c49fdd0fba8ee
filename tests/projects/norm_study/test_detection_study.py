"""The detection study compares what it says: same weights, same images, maps of the backbone, the chosen rate."""

import json
import statistics
import sys

import numpy as np
import pytest
import torch

from mmdet.apis import init_detector
from mmdet.config.load import load_config
from mmdet.engine.norm_doctor import advice
from mmdet.layers import CrossIterBatchNorm2d
from projects.norm_study.detection import longer, report, statistics_error, study
from projects.norm_study.detection.train import Detector, batches

pytest.importorskip('timm', reason='timm is not installed')
SCALE = study.SCALES[False]


def config(**options):
    return load_config(study.CONFIG, {'model.backbone.init_cfg': None, **options})


def detector(norm, seed=0, **options):
    cfg = config(**options)
    return Detector(cfg, study.norm_cfg(norm, cfg.model.neck.out_channels, SCALE.group), seed)


def test_all_norms_begin_with_the_same_weights_and_stand_in_neck_and_heads_alone():
    models = {norm: detector(norm).model for norm in study.NORMS}
    plain = {k: v for k, v in models['none'].state_dict().items() if not k.startswith('backbone')}
    assert not torch.equal(plain['neck.fpn_convs.0.conv.weight'], plain['neck.fpn_convs.1.conv.weight'])
    for norm, model in models.items():
        state = model.state_dict()
        missing = plain.keys() - state.keys()
        assert all(k.endswith('conv.bias') for k in missing) and len(missing) == (0 if norm == 'none' else 12)
        assert all(torch.equal(state[k], plain[k]) for k in plain.keys() - missing)
        if norm.startswith('CBN'):
            found = [n for n, m in model.named_modules() if isinstance(m, CrossIterBatchNorm2d)]
            assert len(found) == 6 + 4 + 2 and not any(n.startswith(('backbone', 'rpn_head')) for n in found)
    other = detector('none', seed=1).model.state_dict()
    assert not torch.equal(other['rpn_head.rpn_conv.weight'], plain['rpn_head.rpn_conv.weight'])


@pytest.mark.parametrize('frozen', [3, 5])
def test_cached_maps_are_what_the_whole_backbone_gives(frozen, tmp_path):
    tested = detector('GN', **{'model.backbone.frozen_stages': frozen})
    tested.model.eval()
    images = [torch.randint(256, (3, 64, 96), dtype=torch.uint8) for _ in range(2)]
    (first, second), again = tested.cached_maps(images, tmp_path), tested.cached_maps(images, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert all(torch.equal(a, b) for a, b in zip(first, again[0]))
    with tested.autocast(), torch.no_grad():
        found = tested.model.backbone([torch.cat(level) for level in zip(first, second)])
        inputs = tested.model.data_preprocessor(dict(inputs=images))['inputs']
        whole = tested.model.backbone.network(inputs.contiguous(memory_format=torch.channels_last))
    assert len(found) == len(whole) == 3
    for a, b in zip(found, whole):
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * float(b.std()))


def test_every_epoch_has_each_image_once_at_any_batch_size():
    one, two = (list(batches(7, batch, 4, seed=3)) for batch in (1, 2))
    assert [i for step in one for i in step] == [i for step in two for i in step]
    indices = np.array([index for ((index, _),) in one]).reshape(4, 7)
    assert (np.sort(indices) == np.arange(7)).all() and (indices[0] != indices[1]).any()
    assert list(batches(7, 1, 4, seed=4)) != one


def test_the_rate_is_the_best_on_held_out_images_and_what_is_done_is_not_run_again(tmp_path, monkeypatch):
    for ap, cell in enumerate(c for c in study.cells(SCALE) if c.part == 'lr' and c.norm == 'GN'):
        score = dict(bbox_mAP=10 - abs(ap - 1), segm_mAP=5.0)
        cell.file(tmp_path).write_text(json.dumps(dict(metrics=score)))
    assert study.best_rate('GN', SCALE, tmp_path) == SCALE.rates[1]
    monkeypatch.setattr(study.multiprocessing, 'get_context', lambda kind: pytest.fail('it is run again'))
    monkeypatch.setattr(study, 'NORMS', ('GN',))
    args = study.argparse.Namespace(out=tmp_path, workers=1)
    with pytest.raises(pytest.fail.Exception):
        study.run([c for c in study.cells(SCALE) if c.part == 'primary'], args)


def runs(seeds, **ap):
    """Of made-up runs: AP by norm, one value a seed."""
    return report.Runs(
        [
            dict(norm=norm, batch=1, seed=seed, metrics=dict(AP=value))
            for norm, values in ap.items() for seed, value in zip(seeds, values)
        ],
        'AP',
    )  # fmt: skip


def test_differences_are_paired_by_seed_and_the_seeds_share_is_no_spread():
    found = runs([0, 1, 2], BN=[10.0, 20.0, 30.0], GN=[11.0, 21.0])
    assert found.pairs(('GN', 1), ('BN', 1)) == [1.0, 1.0] and found.degrees == 1 and found.spread < 1e-9


def test_the_interval_is_students_with_the_pooled_spread():
    generator = np.random.default_rng(0)
    seeds = generator.normal(size=5) * 10
    found = runs(range(5), **{norm: (seeds + generator.normal(size=5)).tolist() for norm in 'abcdefghij'})
    assert found.degrees == 9 * 4 and 0.8 < found.spread < 1.2
    mean, low, high = found.interval(found.pairs(('a', 1), ('b', 1)))
    half = 2.028 * found.spread * (2 / 5) ** 0.5
    assert (high - mean, mean - low) == pytest.approx((half, half), rel=0.12)
    assert report.students(9) == pytest.approx(2.262, rel=0.01)


def test_an_interval_with_0_says_what_can_be_excluded():
    found = runs(range(4), a=[1.0, 1.1, 0.9, 1.0], b=[1.0, 0.9, 1.1, 1.0], c=[9.0, 9.1, 9.0, 8.9])
    assert found.shown(found.pairs(('a', 1), ('b', 1)))[1].startswith('no difference above 0.')
    assert found.shown(found.pairs(('c', 1), ('a', 1)))[1] == '**higher**'
    assert found.shown(found.pairs(('a', 1), ('c', 1)))[1] == '**lower**'


def record(norm, batch, seed, **more):
    metrics = {metric: 10.0 + seed + batch for metric in report.METRICS}
    return dict(norm=norm, batch=batch, seed=seed, rate=0.003, metrics=metrics, **more)


def test_only_whole_seeds_of_a_part_are_reported():
    whole = [record(norm, batch, 0) for norm in study.NORMS for batch in study.BATCHES]
    assert report.whole_seeds([*whole, record('none', 1, 1)]) == whole
    assert report.whole_seeds(whole[1:]) == []


def test_an_interval_from_the_differences_own_spread():
    """2, 4 and 6 have the mean 4 and the standard error 2 / sqrt(3); Student's t of 2 degrees is 4.303."""
    grid = [record(norm, batch, seed) for norm in study.NORMS for batch in study.BATCHES for seed in range(3)]
    for one in grid:
        if one['norm'] == 'GN':
            one['metrics'] = {metric: value + 2 * (1 + one['seed']) for metric, value in one['metrics'].items()}
    rows = {tuple(row[:2]): row[2:] for row in report.paired_table(grid, lambda head, rows: rows)}
    low, high = (float(end) for end in rows['GN - BN', '1'][0].removeprefix('+4.0 (').removesuffix(')').split(' to '))
    assert 4 - low == pytest.approx(high - 4, abs=0.11) and high - 4 == pytest.approx(4.303 * 2 / 3**0.5, rel=0.12)
    assert rows['CBN - BN', '2'] == ['+0.0 (+0.0 to +0.0)'] * 2


def test_a_changed_setting_is_compared_with_its_norm_at_the_same_seed_and_batch():
    grid = [record(norm, batch, seed) for norm in study.NORMS for batch in study.BATCHES for seed in range(3)]
    changed = record('CBN-full-root', 1, 2)
    changed['metrics'] = {metric: value + 0.5 for metric, value in changed['metrics'].items()}
    changed['precise'] = {metric: value - 0.25 for metric, value in changed['metrics'].items()}
    (row,) = report.why_table([changed], lambda head, rows: rows, grid)
    assert row[:2] == ['CBN-full-root - CBN-full', '1'] and row[2].startswith('+0.5 (') and row[-1] == '1'
    (row,) = report.precise_table([changed], lambda head, rows: rows)
    assert row == ['CBN-full-root', '1', '-0.25 (-0.25 to -0.25)', '-0.25 (-0.25 to -0.25)', '1']


@pytest.mark.parametrize('name', study.VARIANTS)
def test_a_variant_differs_from_its_norm_in_one_setting_and_has_its_rate(name, tmp_path):
    norm, changed = study.VARIANTS[name]
    own, others = (study.norm_cfg(which, 64, SCALE.group) for which in (name, norm))
    assert len(changed) == 1 and own != others and own == others | changed
    for rate in SCALE.rates:
        score = dict(bbox_mAP=rate, segm_mAP=0.0)
        study.Cell('lr', norm, 2, study.LR_SEED, rate).file(tmp_path).write_text(json.dumps(dict(metrics=score)))
    assert study.best_rate(name, SCALE, tmp_path) == max(SCALE.rates)


def test_the_figure_has_a_row_for_each_part_with_runs(tmp_path):
    whole = [record(norm, batch, seed) for norm in study.NORMS for batch in study.BATCHES for seed in range(2)]
    generator, sizes = np.random.default_rng(0), []
    for one in whole:
        one['metrics'] = {metric: value + generator.normal() for metric, value in one['metrics'].items()}
    for parts in (dict(primary=whole), dict(primary=whole, long=whole[:10])):
        report.draw_ap(parts, tmp_path / 'ap.png')
        sizes.append(report.plt.imread(tmp_path / 'ap.png').shape)
    assert sizes[1][0] > 1.5 * sizes[0][0] and sizes[0][1] == sizes[1][1]


@pytest.fixture
def few_facades(real_data, tmp_path):
    """A folder with facade/, of eight images, and lite0.pth."""
    for part in 'train', 'val':
        content = json.loads((real_data / 'facade' / part / 'instances.json').read_text())
        content['images'] = content['images'][:8]
        ids = {image['id'] for image in content['images']}
        content['annotations'] = [a for a in content['annotations'] if a['image_id'] in ids]
        (tmp_path / 'facade' / part).mkdir(parents=True)
        (tmp_path / 'facade' / part / 'instances.json').write_text(json.dumps(content))
        (tmp_path / 'facade' / part / 'images').symlink_to(real_data / 'facade' / part / 'images')
    backbone = detector('none').model.backbone
    torch.save(backbone.network.state_dict(), tmp_path / 'lite0.pth')
    return tmp_path


def test_the_cells_of_other_data_and_of_a_trained_backbone(few_facades, real_data, tmp_path, monkeypatch):
    """A record for each; the backbone's trained stages have the norm of the cell, and learn."""
    from projects.norm_study.detection import train

    (tmp_path / 'nuclei_dsb2018').symlink_to(real_data / 'nuclei_dsb2018')
    cells = [study.Cell('backbone', norm, 2, 0) for norm in study.BACKBONES] + [study.Cell('nuclei', 'GN', 1, 0)]
    for rate in SCALE.rates:
        record = dict(metrics=dict(bbox_mAP=rate, segm_mAP=0.0))
        study.Cell('lr', 'GN', 2, study.LR_SEED, rate).file(tmp_path).write_text(json.dumps(record))
    epochs = dict(backbone=1, nuclei=1)
    monkeypatch.setitem(study.SCALES, False, SCALE._replace(epochs=epochs))
    data, built = train.Data, []
    monkeypatch.setattr(train, 'Data', lambda cfg, *more: data(dict(cfg, indices=4), *more))

    class Kept(train.Detector):
        def __init__(self, *args):
            super().__init__(*args)
            built.append((self.model, {k: v.clone() for k, v in self.model.state_dict().items()}))

    monkeypatch.setattr(train, 'Detector', Kept)
    args = study.argparse.Namespace(
        data=tmp_path, weights=tmp_path / 'lite0.pth', cache=tmp_path, out=tmp_path, keep=None, full=False
    )
    for part in 'backbone', 'nuclei':
        following = study.multiprocessing.get_context('spawn').Value('i', 0)
        study.work([cell for cell in cells if cell.part == part], following, args, study.os.getppid())
    records = [json.loads(cell.file(tmp_path).read_text()) for cell in cells]
    assert [r['steps'] for r in records] == [2, 2, 2, 4] and all(r['rate'] == max(SCALE.rates) for r in records)
    (_, *trained), (_, whole) = built[:4], built[4:]
    for (model, before), name in zip([*trained, whole], [*study.BACKBONES, None]):
        blocks, moved = model.backbone.network.blocks, set()
        for key, value in model.state_dict().items():
            if key.startswith('backbone') and not torch.equal(value, before[key]):
                moved.add(key.rpartition('.')[2])
        norm = blocks[6][0].bn1
        assert isinstance(norm, CrossIterBatchNorm2d) == (name == 'GN+CBN-full')
        assert not norm.training and not blocks[0][0].bn1.weight.requires_grad
        statistics = {'running_mean', 'running_var', 'num_batches_tracked', 'bias'}
        assert moved == {None: set(), 'GN+fixed': {'weight'}}.get(name, statistics | {'weight'})


def test_statistics_of_a_run_whose_weights_stand_still(few_facades, tmp_path, monkeypatch):
    """Compensation finds nothing to compensate for, CBN is naive pooling: closer to the truth than one batch."""
    trained = detector('CBN-full').model.state_dict()
    torch.save({k: v for k, v in trained.items() if not k.startswith('backbone')}, tmp_path / 'why-CBN-b2-s3-lr0.pth')
    monkeypatch.setattr(statistics_error, 'ITERATIONS', 4)
    monkeypatch.setattr(statistics_error, 'TRUTH', 8)
    monkeypatch.setattr(statistics_error.norm_doctor, 'PROBES', 2)
    monkeypatch.setattr(sys, 'argv', [
        'statistics_error', '--data', str(tmp_path), '--weights', str(tmp_path / 'lite0.pth'), '--batches', '2',
        '--out', str(tmp_path), '--cache', str(tmp_path), '--trained', str(tmp_path / 'why-CBN-b2-s3-lr0.pth'),
    ])  # fmt: skip
    statistics_error.main()
    found = json.loads((tmp_path / 'statistics-CBN-b2-s3.json').read_text())
    assert found['trained_batch'] == found['batch'] == 2 and len(found['advice']) == 3
    necks = [layer['errors'] for name, layer in found['layers'].items() if name.startswith('neck')]  # not of proposals
    assert len(necks) == 6
    for errors in necks:
        assert errors['CBN'] == pytest.approx(errors['naive'], rel=1e-3)
    assert found['summary']['naive']['var'] < 0.8 * found['summary']['BN']['var']


def test_norm_doctors_advice_fits_the_runs():
    """Where it is against BN, BN was below GN in the runs of that data set and batch, and nowhere else."""
    against, lost = {}, {}
    for data, part in (('', 'primary'), ('nuclei_', 'nuclei')):
        runs = report.Runs(report.whole_seeds(report.records(report.RESULTS, part)), 'segm_mAP')
        for one in report.records(report.RESULTS, f'{data}statistics'):
            lines = advice(one)
            assert lines == one['advice']
            against.setdefault((part, one['batch']), set()).add('not BN' in lines[0])
            lost[part, one['batch']] = statistics.fmean(runs.pairs(('GN', one['batch']), ('BN', one['batch']))) > 1
    assert against == {place: {found} for place, found in lost.items()} and len(against) == 4


def test_the_longer_training_leaves_a_detector_with_its_config(few_facades, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [
        'longer', '--data', str(tmp_path), '--weights', str(tmp_path / 'lite0.pth'), '--out', str(tmp_path / 'out'),
        '--epochs', '1',
    ])  # fmt: skip
    longer.main()
    assert "'steps': 4" in capsys.readouterr().out
    model = init_detector(str(tmp_path / 'out' / 'config.py'), str(tmp_path / 'out' / 'detector.pth'), device='cpu')
    saved = torch.load(tmp_path / 'out' / 'detector.pth', weights_only=True)['state_dict']
    state = model.state_dict()
    assert state.keys() == saved.keys() and all(torch.equal(state[key], saved[key]) for key in saved)
    blocks = model.backbone.network.blocks
    learned = {k for k, v in torch.load(tmp_path / 'lite0.pth', weights_only=True).items()
               if not torch.equal(v, blocks.state_dict().get(k.removeprefix('blocks.'), v))}
    assert learned and all(int(key.split('.')[1]) >= 3 for key in learned)
