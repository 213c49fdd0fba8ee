"""Addresses of weights, and what is said where they cannot be had."""

from pathlib import Path

import pytest
import torch

from mmdet.checkpoints import load_pretrained
from mmdet.config.errors import UserError


def test_pretrained_from_torch_home_and_from_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    weights = dict(conv1=torch.ones(2))
    folder = tmp_path / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    torch.save(weights, folder / 'resnet50-0676ba61.pth')
    assert torch.equal(load_pretrained('torchvision://resnet50')['conv1'], weights['conv1'])
    assert torch.equal(load_pretrained('torchvision://resnet50.imagenet1k_v1')['conv1'], weights['conv1'])
    assert torch.equal(load_pretrained(str(folder / 'resnet50-0676ba61.pth'))['conv1'], weights['conv1'])
    with pytest.raises(UserError, match="no model 'resnet51'. Did you mean resnet50"):
        load_pretrained('torchvision://resnet51')
    with pytest.raises(UserError, match='resnet50 has the weights imagenet1k_v1, imagenet1k_v2'):
        load_pretrained('torchvision://resnet50.v3')


def test_pretrained_that_cannot_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))

    def no_network(url, *args, **kwargs):
        raise OSError('Name or service not known')

    monkeypatch.setattr(torch.hub, 'download_url_to_file', no_network)
    with pytest.raises(UserError) as caught:
        load_pretrained('torchvision://resnet50')
    text = str(caught.value)
    for part in ('torchvision://resnet50', 'resnet50-0676ba61.pth', str(tmp_path), 'TORCH_HOME',
                 'Name or service not known'):  # fmt: skip
        assert part in text
    assert '\n' not in text and not list((tmp_path / 'hub' / 'checkpoints').iterdir())


def test_a_download_that_broke_off_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    torch.save(dict(conv1=torch.ones(2)), tmp_path / 'whole.pth')
    whole = (tmp_path / 'whole.pth').read_bytes()
    content = whole[: len(whole) // 2]
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, path, **_: Path(path).write_bytes(content))
    with pytest.raises(UserError, match=r'cannot be downloaded .*ba61.pth is damaged'):
        load_pretrained('torchvision://resnet50')
    content = whole
    assert torch.equal(load_pretrained('torchvision://resnet50')['conv1'], torch.ones(2))


def test_a_download_without_a_place_fails_in_all_processes(tmp_path, monkeypatch):
    """The others wait for what the first one says."""
    (tmp_path / 'file').touch()
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'file'))
    told = []

    def gather(outcomes, failure):
        told.append(failure)
        outcomes[:] = [failure] * len(outcomes)

    monkeypatch.setattr(torch.distributed, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda: 2)
    monkeypatch.setattr(torch.distributed, 'all_gather_object', gather)
    with pytest.raises(UserError, match='cannot be downloaded'):
        load_pretrained('torchvision://resnet50')
    assert len(told) == 1 and 'file' in told[0]


def test_an_address_is_asked_once_and_is_not_taken_for_another(tmp_path, monkeypatch, serve):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    for value, folder in enumerate('ab'):
        (tmp_path / folder).mkdir()
        for name in 'epoch_12.pth', 'net-12345678.pth':
            torch.save(dict(conv1=torch.full((2,), float(value))), tmp_path / folder / name)
    (first, asked), (second, _) = serve(tmp_path / 'a'), serve(tmp_path / 'b')
    for _ in range(2):
        assert load_pretrained(f'{first}/epoch_12.pth')['conv1'].tolist() == [0, 0]
        assert load_pretrained(f'{second}/epoch_12.pth?version=2')['conv1'].tolist() == [1, 1]
    assert load_pretrained(f'{first}/net-12345678.pth')['conv1'].tolist() == [0, 0]
    assert load_pretrained(f'{second}/net-12345678.pth')['conv1'].tolist() == [0, 0]  # its checksum says so
    assert asked == ['/epoch_12.pth', '/net-12345678.pth']
    with pytest.raises(UserError, match=f'{first}/epoch_13.pth cannot be downloaded .*404'):
        load_pretrained(f'{first}/epoch_13.pth')
