"""The norm study measures what it says: runs side by side are independent, batches are drawn as stated."""

import json

import pytest
import torch

from projects.norm_study import classify
from projects.norm_study.data import Images, _even, batches
from projects.norm_study.nets import SideBySide

NORMS = {
    'BN': dict(type='BN'),
    'GN': dict(type='GN', num_groups=4),
    'BatchRenorm': dict(type='BatchRenorm', warmup_iters=1, ramp_iters=2),
    'naive': dict(type='CBN', rho=0.0),
    'CBN': dict(type='CBN', burnin_iters=1),
    'CBN-root': dict(type='CBN', compensation='root'),
    'CBN-full': dict(type='CBN', full_gradient=True),
    'CBN-root-full': dict(type='CBN', compensation='root', full_gradient=True),
}


@pytest.mark.parametrize('norm', NORMS)
@pytest.mark.parametrize(
    'layers', [((8, 3, 1, 1), (8, 3, 1, 1), (12, 3, 2, 1)), ((8, 6, 1, 0), (8, 1, 1, 0))]
)
def test_runs_side_by_side_are_what_each_would_be_alone(norm, layers):
    seeds, steps, batch = [3, 8, 11], 5, 4
    data = torch.randn(steps, batch, len(seeds), 2, 6, 6, dtype=torch.float64)
    labels = torch.randint(5, (steps, batch, len(seeds)))

    def train(which):
        model = SideBySide(2, 5, layers, NORMS[norm], [seeds[i] for i in which]).double()
        optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9, weight_decay=1e-3)
        for x, target in zip(data[:, :, which], labels[:, :, which]):
            loss = torch.nn.functional.cross_entropy(
                model(x.flatten(1, 2)).transpose(1, 2), target, reduction='none'
            )
            optimizer.zero_grad()
            loss.mean(0).sum().backward()
            optimizer.step()
        model.eval()
        return model(data[0][:, which].flatten(1, 2))

    together = train([0, 1, 2])
    for i in range(3):
        torch.testing.assert_close(together[:, i : i + 1], train([i]), rtol=1e-9, atol=1e-9)


def made_up():
    labels = torch.arange(60) % 4
    return Images(torch.zeros(60, 1, 2, 2), labels, torch.arange(60) // 7)


@pytest.mark.parametrize('kind, field', [('class', 'labels'), ('photo', 'photos')])
def test_correlated_batches_share_their_class_or_photo_and_stay_uniform(kind, field):
    data = made_up()
    order = batches(data, kind, 5, 4000, seed=0)
    groups = getattr(data, field)[order]
    assert order.shape == (4000, 5) and (groups == groups[:, :1]).all()
    shares = torch.bincount(order.flatten(), minlength=60) / order.numel()
    assert shares.min() > 0.5 / 60 and shares.max() < 1.5 / 60


def test_even_photographs_have_one_mean_and_deviation():
    data = made_up()
    light = data.photos.float().view(-1, 1, 1, 1)
    even = _even(data._replace(images=torch.randn(60, 1, 20, 20) * (1 + light) + light))
    for photograph in data.photos.unique():
        own = even.images[data.photos == photograph]
        assert own.mean().abs() < 1e-5 and 0.9 < own.std() < 1


def test_independent_batches_visit_every_image_once_an_epoch():
    order = batches(made_up(), 'iid', 4, 45, seed=0).flatten()
    for epoch in order.split(60):
        assert len(epoch.unique()) == 60
    assert not torch.equal(order[:60], order[60:120])


def test_every_setting_of_a_section_has_its_own_key():
    for section in ('main', 'window', 'burnin', 'lr'):
        keys = [s.key() for s in classify.settings(section, list(classify.REGIMES), [1, 2])]
        assert keys and len(set(keys)) == len(keys)


def test_a_finished_cell_is_not_run_again(tmp_path, monkeypatch, capsys):
    pytest.importorskip('sklearn', reason='the digits come with scikit-learn')
    out = tmp_path / 'classify.json'
    cells = ['--regimes', 'digits-fc', '--batches', '32', '--seeds', '2', '--samples', '384']
    arguments = ['x', *cells, '--out', str(out)]
    monkeypatch.setattr('sys.argv', arguments)
    classify.main()
    results = json.loads(out.read_text())
    assert {r['norm'] for r in results.values()} == {*NORMS}
    assert all(len(r['accuracy']) == 2 and max(r['accuracy']) <= 100 for r in results.values())
    monkeypatch.setattr(classify, 'train', lambda *a: pytest.fail('ran again'))
    classify.main()
