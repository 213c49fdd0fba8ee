"""Two processes against one: gradients, and batches in which one process sees no object."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from mmdet.models.task_modules import RandomSampler
from mmdet.registry import MODELS


def total(losses: dict) -> torch.Tensor:
    return sum(value for key, value in losses.items() if 'loss' in key)


def one_process(rank: int, init_file: str, cfg: dict, batches: list[dict], result: str) -> None:
    """Train step of `batches[rank]`; rank 0 saves the averaged gradients."""
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{init_file}', rank=rank, world_size=len(batches))
    RandomSampler.random_choice = staticmethod(lambda indices, count: indices[:count])
    torch.manual_seed(0)
    model = MODELS.build(cfg).train().double()
    model = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    for _ in range(2):  # the second forward is where DDP reports parameters without a gradient
        model.zero_grad()
        total(model(**model.module.data_preprocessor(dict(batches[rank]), True), mode='loss')).backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in model.module.named_parameters() if p.grad is not None}, result)
    dist.destroy_process_group()


def gradients_of_two(tmp_path, cfg: dict, batches: list[dict]) -> dict[str, torch.Tensor]:
    args = (str(tmp_path / 'init'), cfg, batches, str(tmp_path / 'grads.pth'))
    mp.spawn(one_process, args, nprocs=len(batches))
    return torch.load(tmp_path / 'grads.pth')


def split(data: dict) -> list[dict]:
    return [{key: value[i : i + 1] for key, value in data.items()} for i in range(len(data['inputs']))]


def test_two_processes_give_the_gradient_of_one(tmp_path, small_cfg, make_data, monkeypatch):
    """Batch 1 on two processes equals batch 2 on one; backbone BatchNorm in eval mode, no norm elsewhere."""
    data = make_data([3, 2])
    both = gradients_of_two(tmp_path, small_cfg('faster'), split(data))
    monkeypatch.setattr(RandomSampler, 'random_choice', staticmethod(lambda indices, count: indices[:count]))
    torch.manual_seed(0)
    model = MODELS.build(small_cfg('faster')).train().double()  # see test_two_stage.py
    total(model(**model.data_preprocessor(data, True), mode='loss')).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert both.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(both[name], gradient, atol=1e-9, rtol=1e-6, msg=name)


@pytest.mark.parametrize('norm', ['SyncBN', 'CBN'])
def test_a_process_without_objects_keeps_pace(tmp_path, small_cfg, make_data, norm):
    grads = gradients_of_two(tmp_path, small_cfg('mask', dict(type=norm)), split(make_data([2, 0])))
    assert all(torch.isfinite(g).all() for g in grads.values())
    assert grads['roi_head.mask_head.conv_logits.weight'].abs().sum() > 0
