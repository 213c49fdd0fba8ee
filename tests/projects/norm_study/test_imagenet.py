"""The classification study: its networks, images and metric, and a cell that is killed, resumed and not run again."""

import json
import subprocess

import cv2
import numpy as np
import pytest
import torch
import torchvision

from mmdet.checkpoints import read_checkpoint
from mmdet.cli import train
from mmdet.layers import BatchNorm2d, BatchRenorm, CrossIterBatchNorm2d
from projects.norm_study.data import COCO_CLASSES
from projects.norm_study.imagenet import crops, parts, study

LAYERS = {'BN': BatchNorm2d, 'GN': torch.nn.GroupNorm, 'BRN': BatchRenorm}


@pytest.fixture
def images(tmp_path):
    """Class folders with 6 images to train and 2 to test of each of two colours."""
    generator = np.random.default_rng(0)
    for part, number, name in [(p, n, c) for p, k in (('train', 6), ('val', 2)) for n in range(k) for c in ('a', 'b')]:
        image = generator.integers(100, size=(20 + number, 24, 3)) + (100 if name == 'b' else 0)
        (tmp_path / 'data' / part / name).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / 'data' / part / name / f'{number}.png'), image.astype(np.uint8))
    return tmp_path / 'data'


@pytest.mark.parametrize('norm', study.NORMS)
def test_one_norm_stands_everywhere_and_bn_is_torchvisions_network(norm):
    torch.manual_seed(0)
    network = parts.resnet18(study.NORMS[norm], 3)
    layers = [m for m in network.modules() if isinstance(m, LAYERS.get(norm, CrossIterBatchNorm2d))]
    assert len(layers) == 20
    torch.manual_seed(0)
    plain = torchvision.models.resnet18(num_classes=3)
    assert sum(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules()) in (0, 20 if norm == 'BN' else 0)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), plain.parameters(), strict=True))
    x = torch.randn(4, 3, 32, 32)
    out, expected = network(x), plain(x)  # the first batch of CBN is BatchNorm's
    same = norm != 'GN'
    assert torch.allclose(out, expected, atol=1e-4) == same
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_accuracy_is_that_of_sorted_logits():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 12, generator=generator), torch.randint(12, (50,), generator=generator)
    metric = parts.TopAccuracy()
    metric.process((), list(zip(logits, labels)))
    order = logits.argsort(1, descending=True)
    for top in (1, 5):
        hits = (order[:, :top] == labels[:, None]).any(1).float().mean()
        assert metric.compute_metrics(metric.results)[f'top{top}'] == pytest.approx(100 * float(hits))


def test_images_are_cut_to_size_and_normalised(images):
    training, testing = (parts.ClassFolders(str(images / 'train'), 16, training) for training in (True, False))
    assert len(training) == 12 and training.metainfo == dict(classes=('a', 'b'))
    assert [label for _, label in testing] == [0] * 6 + [1] * 6
    assert not torch.equal(training[0][0], training[0][0]) and torch.equal(testing[0][0], testing[0][0])
    dark, bright = (testing[i][0] * torch.tensor(parts.STD).view(3, 1, 1) + torch.tensor(parts.MEAN).view(3, 1, 1)
                    for i in (0, 11))  # fmt: skip
    assert dark.shape == (3, 16, 16) and 0.1 < dark.mean() < 0.3 and 0.5 < bright.mean() < 0.7


def call(monkeypatch, images, out, *arguments):
    """The command, its trainings in this process."""
    command = ['study', '--data', str(images), '--out', str(out), '--epochs', '2', '--size', '16', '--batches', '4']
    no_workers = [f'{part}_dataloader.{key}' for part in ('train', 'val')
                  for key in ('num_workers=0', 'persistent_workers=False')]  # fmt: skip
    monkeypatch.setattr('sys.argv', [*command, *arguments, '--cfg-options', *no_workers])
    study.main()


def in_this_process(command):
    train.main(command[command.index('train') + 1 :])
    return subprocess.CompletedProcess(command, 0)


def weights_of(folder):
    return read_checkpoint(str(folder / 'epoch_2.pth')).weights


@pytest.mark.usefixtures('on_the_cpu')
def test_a_killed_cell_goes_on_to_the_bit_and_a_finished_one_is_not_run_again(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, 'run', in_this_process)
    call(monkeypatch, images, tmp_path / 'whole', '--norms', 'CBN-full')

    forward, calls = parts.NormStudyResNet18.forward, []

    def killed(self, images, labels=None, mode='tensor'):
        calls.append(mode)
        if calls.count('loss') == 5:  # of 3 an epoch
            raise KeyboardInterrupt
        return forward(self, images, labels, mode)

    with monkeypatch.context() as patch:
        patch.setattr(parts.NormStudyResNet18, 'forward', killed)
        with pytest.raises(KeyboardInterrupt):
            call(monkeypatch, images, tmp_path / 'killed', '--norms', 'CBN-full')
    assert not (tmp_path / 'killed' / 'CBN-full-b4.json').exists()
    call(monkeypatch, images, tmp_path / 'killed', '--norms', 'CBN-full')
    whole, killed = (json.loads((tmp_path / name / 'CBN-full-b4.json').read_text()) for name in ('whole', 'killed'))
    assert whole == killed and whole['top5'] == 100 and whole['epochs'] == 2
    a, b = (weights_of(tmp_path / name / 'CBN-full-b4') for name in ('whole', 'killed'))
    assert all(torch.equal(a[k], b[k]) for k in a)

    monkeypatch.setattr(subprocess, 'run', lambda command: pytest.fail('it is run again'))
    capsys.readouterr()
    call(monkeypatch, images, tmp_path / 'whole', '--norms', 'CBN-full')
    assert f'| CBN-full | {whole["top1"]:.1f} |' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='other settings'):
        call(monkeypatch, images, tmp_path / 'whole', '--norms', 'CBN-full', '--seed', '1')


def test_what_a_cell_changes_of_the_config(images):
    args = study.argparse.Namespace(data=images, epochs=50, size=32)
    options = {norm: study.Cell(norm, 8).options(args) for norm in study.NORMS}
    for changed in options.values():
        assert changed['model.num_classes'] == 2 and changed['param_scheduler.0.milestones'] == [15, 30, 45]
    burnin = {norm: o.get('norm_cfg.burnin') for norm, o in options.items()}
    assert burnin == {'BN': None, 'GN': None, 'BRN': None, 'naive': 4, 'CBN': 4, 'CBN-full': None}


def test_parts_with_other_classes_are_refused(images):
    (images / 'val' / 'c').mkdir()
    with pytest.raises(SystemExit, match='2 folders of classes and val/ 3'):
        study.classes(images)


def test_crops_of_objects_stand_in_folders_of_their_classes(tmp_path):
    image = np.full((60, 80, 3), 50, np.uint8)
    image[10:40, 20:60] = 200
    small, crowd = ([0, 0, 10, 10], 0), ([0, 0, 40, 40], 1)
    objects = [([20, 10, 40, 30], 0), small, crowd]
    data = dict(
        images=[dict(id=7, file_name='x.png')], categories=[dict(id=1, name='dog', supercategory='animal')],
        annotations=[dict(image_id=7, category_id=1, bbox=box, iscrowd=many) for box, many in objects],
    )  # fmt: skip
    (tmp_path / 'annotations').mkdir()
    for part in ('train2017', 'val2017'):
        (tmp_path / part).mkdir()
        cv2.imwrite(str(tmp_path / part / 'x.png'), image)
        (tmp_path / 'annotations' / f'instances_{part}.json').write_text(json.dumps(data))
    assert crops.write_crops(tmp_path, tmp_path / 'out') == dict(train=1, val=1)
    assert study.classes(tmp_path / 'out') == sorted(COCO_CLASSES)
    (file,) = (tmp_path / 'out' / 'train').glob('*/*.png')
    assert file.parent.name == 'animal'
    assert cv2.imread(str(file)).shape == (37, 49, 3)  # a tenth of its size around it
