"""Running statistics over two processes."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from mmdet.engine.hooks.norm_statistics import average_norm_statistics
from mmdet.layers import build_norm_layer

NORMS = ('BN', 'CBN', 'BatchRenorm')


def one_process(rank: int, init_file: str, result: str) -> None:
    dist.init_process_group('gloo', init_method=f'file://{init_file}', rank=rank, world_size=2)
    model = nn.ModuleDict({kind: build_norm_layer(dict(type=kind), 2)[1] for kind in NORMS})
    for layer in model.values():
        layer.running_mean.fill_(1.0 + rank)
        layer.running_var.fill_(3.0 + 2 * rank)
    average_norm_statistics(model)
    torch.save(model.state_dict(), f'{result}{rank}.pth')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def states(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp('ranks')
    mp.spawn(one_process, (str(folder / 'init'), str(folder / 'rank')), nprocs=2)
    return [torch.load(folder / f'rank{rank}.pth', weights_only=True) for rank in range(2)]


@pytest.mark.parametrize('kind', NORMS)
def test_all_processes_get_the_mean(states, kind):
    """CBN is no `_BatchNorm`; evaluated with each process's own statistics it would differ from its checkpoint."""
    for state in states:
        assert state[f'{kind}.running_mean'].tolist() == [1.5, 1.5]
        assert state[f'{kind}.running_var'].tolist() == [4.0, 4.0]
