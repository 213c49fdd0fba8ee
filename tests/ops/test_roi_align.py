"""RoIAlign against torchvision, a slow loop and torch's own checkers."""

import math

import pytest
import torch
import torchvision
from torch.library import opcheck

from mmdet.ops import COMPILED, RoIAlign, multiscale_roi_align, roi_align
from mmdet.ops.library import serves
from mmdet.ops.roi_align import _plain_roi_align, map_levels

compiled = pytest.mark.skipif(not COMPILED, reason='the compiled ops are missing')
SCALES = [1 / 4, 1 / 8, 1 / 16, 1 / 32]
# torchvision's CUDA kernel fuses multiply and add: its samples stand up to 1e-5 cells from ours.
BESIDE_TORCHVISION = dict(cpu=dict(atol=1e-5, rtol=1e-5), cuda=dict(atol=1e-4, rtol=1e-4))


def random_rois(count, images=2, side=60.0, dtype=torch.float32, device='cpu'):
    """Boxes of all sizes, many partly and some wholly outside the maps."""
    sides = torch.empty(count, 2).uniform_(-1, math.log(4 * side)).exp()
    centres = torch.rand(count, 2) * 1.2 * side - 0.1 * side
    image = torch.randint(0, images, (count, 1))
    return torch.cat([image, centres - sides / 2, centres + sides / 2], 1).to(device, dtype)


def slow_roi_align(feature, rois, size, scale, sampling_ratio, aligned, legacy):
    """A plain Python loop over every sample, written from the definition."""
    images, channels, height, width = feature.shape
    output = torch.zeros(len(rois), channels, *size, dtype=feature.dtype)

    def value(plane, y, x):
        if y < -1 or y > height or x < -1 or x > width:
            return torch.zeros(channels, dtype=feature.dtype)
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        y0, x0 = int(y), int(x)
        y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
        top = plane[:, y0, x0] * (1 - (x - x0)) + plane[:, y0, x1] * (x - x0)
        bottom = plane[:, y1, x0] * (1 - (x - x0)) + plane[:, y1, x1] * (x - x0)
        return top * (1 - (y - y0)) + bottom * (y - y0)

    for k, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        shift = 0.5 if aligned and not legacy else 0.0
        left, top = x1 * scale - shift, y1 * scale - shift
        wide = (x2 + legacy) * scale - shift - left
        high = (y2 + legacy) * scale - shift - top
        if legacy:
            wide, high = max(wide, 0), max(high, 0)
        elif not aligned:
            wide, high = max(wide, 1), max(high, 1)
        bin_h, bin_w = high / size[0], wide / size[1]
        grid_h = sampling_ratio if sampling_ratio > 0 else max(math.ceil(bin_h), 0)
        grid_w = sampling_ratio if sampling_ratio > 0 else max(math.ceil(bin_w), 0)
        for i in range(size[0]):
            for j in range(size[1]):
                for a in range(grid_h):
                    for b in range(grid_w):
                        output[k, :, i, j] += value(feature[int(image)], top + (i + (a + 0.5) / grid_h) * bin_h,
                                                    left + (j + (b + 0.5) / grid_w) * bin_w)
                output[k, :, i, j] /= max(grid_h * grid_w, 1)
    return output


def looped_multiscale(features, rois, size, scales, sampling_ratio, aligned=True):
    levels = map_levels(rois, len(features), 56.0)
    output = features[0].new_zeros(len(rois), features[0].shape[1], size, size)
    for i, (feature, scale) in enumerate(zip(features, scales)):
        inds = (levels == i).nonzero()[:, 0]
        output = output.index_put((inds,), torchvision.ops.roi_align(feature, rois[inds], size, scale, sampling_ratio,
                                                                     aligned))
    return output


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('sampling_ratio', [-1, 0, 1, 2, 5])
@pytest.mark.parametrize('size, channels, count', [((7, 7), 37, 60), ((3, 5), 64, 1), ((14, 14), 1, 7)])
def test_equals_torchvision(device, memory_format, dtype, aligned, sampling_ratio, size, channels, count):
    torch.manual_seed(0)
    feature = torch.randn(2, channels, 20, 33, dtype=dtype, device=device)
    rois = random_rois(count, dtype=dtype, device=device, side=120)
    ours = feature.clone(memory_format=memory_format).requires_grad_()
    theirs = feature.clone().requires_grad_()
    tolerance = dict(BESIDE_TORCHVISION[device]) if dtype == torch.float32 else dict(atol=1e-10, rtol=1e-10)
    output = roi_align(ours, rois, size, 0.25, sampling_ratio, aligned)
    expected = torchvision.ops.roi_align(theirs, rois, size, 0.25, sampling_ratio, aligned)
    torch.testing.assert_close(output, expected, **tolerance)
    gradient = torch.randn_like(expected)
    output.backward(gradient)
    expected.backward(gradient)
    tolerance['atol'] *= 10  # a cell sums over many boxes
    torch.testing.assert_close(ours.grad, theirs.grad, **tolerance)
    if memory_format == torch.channels_last and channels > 1:
        assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('aligned, legacy', [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_equals_slow_loop(device, aligned, legacy, sampling_ratio):
    torch.manual_seed(1)
    feature = torch.randn(2, 3, 9, 12, dtype=torch.float64)
    rois = random_rois(20, side=40, dtype=torch.float64)
    rois[0, 1:] = torch.tensor([8.0, 8, 7, 7])  # legacy width 0
    rois[1, 1:] = torch.tensor([5.0, 5, 5, 5])  # thinner than a cell
    expected = slow_roi_align(feature, rois, (3, 4), 0.25, sampling_ratio, aligned, legacy)
    output = roi_align(feature.to(device), rois.to(device), (3, 4), 0.25, sampling_ratio, aligned, legacy)
    torch.testing.assert_close(output.cpu(), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_multiscale_equals_loop_over_levels(device, memory_format, sampling_ratio):
    torch.manual_seed(2)
    features = [torch.randn(2, 40, int(400 * s), int(608 * s), device=device) for s in SCALES]
    rois = random_rois(80, side=600, device=device)
    ours = [f.clone(memory_format=memory_format).requires_grad_() for f in features]
    theirs = [f.clone().requires_grad_() for f in features]
    output = multiscale_roi_align(ours, rois, 7, SCALES, sampling_ratio)
    expected = looped_multiscale(theirs, rois, 7, SCALES, sampling_ratio)
    assert map_levels(rois, 4, 56.0).unique().numel() == 4
    tolerance = dict(BESIDE_TORCHVISION[device])
    torch.testing.assert_close(output, expected, **tolerance)
    gradient = torch.randn_like(expected)
    output.backward(gradient)
    expected.backward(gradient)
    tolerance['atol'] *= 10
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a.grad, b.grad, **tolerance)


@pytest.mark.cuda
def test_a_gpu_is_not_waited_for():
    features = [torch.randn(2, 40, int(400 * s), int(608 * s), device='cuda', requires_grad=True) for s in SCALES]
    rois = random_rois(80, side=600, device='cuda')
    torch.cuda.set_sync_debug_mode('error')
    try:
        multiscale_roi_align(features, rois, 7, SCALES).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert features[0].grad.any()


def test_level_rule_at_its_edges(device):
    sides = torch.tensor([0.0, 1, 55.9, 56, 111.9, 112, 223.9, 224, 447, 448, 1e6])
    rois = torch.stack([sides * 0, sides * 0, sides * 0, sides, sides], 1).to(device)
    features = [torch.full((1, 1, 4, 4), float(i), device=device) for i in range(4)]
    output = multiscale_roi_align(features, rois, 1, [1e-6] * 4, 2)
    assert output.flatten().tolist() == pytest.approx([0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 3])
    shifted = rois - torch.tensor([0, 0, 0, 1, 1.0], device=device)
    legacy = multiscale_roi_align(features, shifted, 1, [1e-6] * 4, 2, legacy=True)
    torch.testing.assert_close(legacy, output)


@pytest.mark.parametrize('count', [0, 1, 300])
def test_few_and_many_boxes_take_the_same_numbers(device, count):
    """Many boxes share packed cells, one does not: the result must not depend on the company."""
    torch.manual_seed(3)
    feature = torch.randn(1, 33, 50, 70, device=device)
    rois = random_rois(count, images=1, side=280, device=device)
    together = roi_align(feature, rois, 7, 0.25, 0, True)
    alone = [roi_align(feature, r[None], 7, 0.25, 0, True) for r in rois[:20]]
    assert together.shape == (count, 33, 7, 7)
    if count:
        assert torch.equal(together[:20], torch.cat(alone))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_sums_in_float32(device, dtype):
    torch.manual_seed(4)
    feature = torch.randn(2, 20, 30, 40, device=device).to(dtype).requires_grad_()
    rois = random_rois(30, side=120, device=device)
    wide = feature.detach().float().requires_grad_()
    output, expected = roi_align(feature, rois, 7, 0.25, 0, True), roi_align(wide, rois, 7, 0.25, 0, True)
    assert output.dtype == dtype
    assert torch.equal(output, expected.to(dtype))
    gradient = torch.randn_like(expected).to(dtype)
    output.backward(gradient)
    expected.backward(gradient.float())
    torch.testing.assert_close(feature.grad.float(), wide.grad, atol=0.05, rtol=0.02)


@pytest.mark.parametrize('corner', [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e38])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('legacy', [False, True])
def test_wild_boxes_stay_inside(device, corner, sampling_ratio, legacy):
    feature = torch.ones(1, 8, 10, 12, device=device, requires_grad=True)
    rois = torch.tensor([[0, 1.0, 2, 30, 40]]).repeat(6, 1)
    for i in range(4):
        rois[i, i + 1] = corner
    rois[4, 1:] = corner
    rois = rois.to(device)
    for aligned in (False, True):
        output = roi_align(feature, rois, 7, 0.25, sampling_ratio, aligned, legacy)
        assert output.isfinite().all() and output.min() >= 0 and output.max() <= 1 + 1e-5
        assert output[5].max() > 0.9
        if not math.isfinite(corner):
            assert not output[:5].any()
        multi = multiscale_roi_align([feature, feature[..., ::2, ::2]], rois, 7, [0.25, 0.125], sampling_ratio, aligned)
        assert multi.isfinite().all()
        output.sum().backward()
        assert feature.grad.isfinite().all()


def test_a_image_outside_the_batch(device, cuda_kernels):
    """An error on the CPU; zeros on CUDA, where an error would need a synchronisation."""
    feature = torch.ones(2, 3, 8, 8, device=device, requires_grad=True)
    for image in (-1.0, 2.0, math.nan):
        rois = torch.tensor([[image, 0, 0, 5, 5]], device=device)
        if cuda_kernels:
            output = roi_align(feature, rois, 7)
            assert not output.any() and not torch.autograd.grad(output.sum(), feature)[0].any()
        else:
            with pytest.raises((ValueError, RuntimeError), match='image|batch|index'):
                roi_align(feature, rois, 7)


def test_a_map_too_long_for_shared_memory(device, cuda_kernels):
    """CUDA kernels list the cells that an adaptive grid may touch; a fixed one touches few."""
    feature = torch.ones(1, 1, 1, 29500, device=device)
    rois = torch.tensor([[0.0, 0, 0, 29500, 1]], device=device)
    assert roi_align(feature, rois, 7, 1.0, 2).max() == pytest.approx(1)
    if cuda_kernels:
        with pytest.raises(ValueError, match='bytes of shared memory, this GPU has .*; use a sampling_ratio above 0'):
            roi_align(feature, rois, 7)
    else:
        assert roi_align(feature, rois, 7).max() == pytest.approx(1, rel=1e-3)
    feature = feature[..., :8000].requires_grad_()  # beyond what is granted without a request
    (grad,) = torch.autograd.grad(roi_align(feature, rois * 0.2, (1, 7)).sum(), feature)
    assert grad.sum() == pytest.approx(7, rel=1e-3)


def test_non_contiguous_and_empty(device):
    torch.manual_seed(5)
    base = torch.randn(2, 60, 16, 24, device=device)
    rois = random_rois(12, side=60, device=device)
    for feature in (base[:, ::2], base[..., ::2, 1::2], base.transpose(2, 3), base[:, 3:36].contiguous(
            memory_format=torch.channels_last)[:, 2:20], base[:1].expand(2, -1, -1, -1)):
        leaf = feature.detach().requires_grad_()
        solid = feature.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
        gradient = torch.randn(12, feature.shape[1], 7, 7, device=device).transpose(2, 3)
        a, b = roi_align(leaf, rois, 7, 0.25, 2, True), roi_align(solid, rois, 7, 0.25, 2, True)
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
        grad, expected = torch.autograd.grad(a, leaf, gradient)[0], torch.autograd.grad(b, solid, gradient)[0]
        torch.testing.assert_close(grad, expected, atol=1e-5, rtol=1e-5)
    for shape, count in (((2, 5, 8, 8), 0), ((2, 0, 8, 8), 4), ((2, 5, 0, 8), 4)):
        feature = torch.zeros(shape, device=device, requires_grad=True)
        output = roi_align(feature, rois[:count] * 0, 7)
        assert output.shape == (count, shape[1], 7, 7) and not output.any()
        output.sum().backward()
        assert feature.grad.shape == shape


def test_list_of_boxes_and_module(device):
    feature = torch.randn(2, 4, 10, 10, device=device)
    boxes = [torch.rand(3, 4, device=device) * 9, torch.zeros(0, 4, device=device)]
    expected = torchvision.ops.roi_align(feature, boxes, (2, 3), 0.5, 2, True)
    torch.testing.assert_close(RoIAlign((2, 3), 0.5, 2, True)(feature, boxes), expected, **BESIDE_TORCHVISION[device])
    assert 'sampling_ratio=2' in repr(RoIAlign(7, 0.5, 2))


@pytest.mark.parametrize('case, message', [
    (lambda f, r: roi_align(f[0], r, 7), r'input must be \(N, C, H, W\)'),
    (lambda f, r: roi_align(f, r[:, 1:], 7), r'boxes must be \(K, 5\)'),
    (lambda f, r: roi_align(f, [r], 7), r'one \(n, 4\) tensor'),
    (lambda f, r: roi_align(f.int(), r, 7), 'floating point'),
    (lambda f, r: roi_align(f, r.long(), 7), 'floating point'),
    (lambda f, r: roi_align(f, r.to('meta'), 7), 'boxes are on meta'),
    (lambda f, r: roi_align(f, r, 0), 'output_size must be positive'),
    (lambda f, r: multiscale_roi_align([f], r, 7, [1.0, 0.5]), '1 maps but 2'),
    (lambda f, r: multiscale_roi_align([f, f[:, :1]], r, 7, [1.0, 0.5]), 'equal N and C'),
    (lambda f, r: multiscale_roi_align([f, f.double()], r, 7, [1.0, 0.5]), 'one dtype'),
    (lambda f, r: multiscale_roi_align([], r, 7, []), 'features must be'),
])
def test_wrong_input_has_one_clear_message(case, message):
    with pytest.raises(ValueError, match=message):
        case(torch.zeros(1, 2, 8, 8), torch.zeros(1, 5))


@compiled
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('legacy', [False, True])
def test_gradcheck(device, memory_format, legacy):
    torch.manual_seed(6)
    features = [torch.randn(2, 2, s, s + 1, dtype=torch.float64, device=device).contiguous(memory_format=memory_format)
                .requires_grad_() for s in (6, 3)]
    rois = random_rois(4, side=25, dtype=torch.float64, device=device)

    def function(*maps):
        return multiscale_roi_align(maps, rois, 2, [0.25, 0.125], 2, finest_scale=10.0, legacy=legacy)

    assert torch.autograd.gradcheck(function, features, nondet_tol=1e-12)
    assert torch.autograd.gradgradcheck(function, features, nondet_tol=1e-12)


@compiled
def test_opcheck(device):
    if not serves(torch.zeros(0, device=device)):
        pytest.skip('the CUDA kernels are not compiled')
    torch.manual_seed(7)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        maps = [torch.randn(2, 3, s, s, device=device).contiguous(memory_format=memory_format).requires_grad_()
                for s in (12, 6)]
        rois = random_rois(4, side=40, device=device)
        opcheck(torch.ops.mmdet.roi_align, (maps, rois, [0.25, 0.125], 3, 4, 2, True, False, 10.0))
        shapes = [size for m in maps for size in m.shape]
        opcheck(torch.ops.mmdet.roi_align_backward,
                (torch.randn(4, 3, 3, 4, device=device), rois, shapes, [0.25, 0.125], 2, True, False, 10.0,
                 memory_format == torch.channels_last))


@compiled
def test_compile_and_autocast(device):
    torch.manual_seed(8)
    features = [torch.randn(2, 8, s, s, device=device, requires_grad=True) for s in (16, 8)]
    rois = random_rois(9, side=60, device=device)

    def function(maps, boxes):
        return (multiscale_roi_align(maps, boxes, 7, [0.25, 0.125]) * 2).relu()

    expected = function(features, rois)
    fast = torch.compile(function, backend='aot_eager', fullgraph=True)
    output = fast(features, rois)
    assert torch.equal(output, expected)
    grads = torch.autograd.grad(output.sum(), features), torch.autograd.grad(expected.sum(), features)
    torch.testing.assert_close(*grads)
    assert fast(features, rois[:5]).shape[0] == 5
    with torch.autocast(device, torch.bfloat16):
        half = torch.nn.functional.conv2d(features[0], torch.ones(8, 8, 1, 1, device=device))
        assert half.dtype == torch.bfloat16
        assert roi_align(half, rois, 7, 0.25).dtype == torch.bfloat16


@compiled
def test_meta_shapes():
    feature = torch.empty(2, 256, 200, 304, device='meta')
    assert roi_align(feature, torch.empty(512, 5, device='meta'), 7).shape == (512, 256, 7, 7)


@compiled
def test_deterministic_backward(device):
    torch.manual_seed(9)
    features = [torch.randn(2, 20, s, s, device=device, requires_grad=True) for s in (30, 15)]
    rois = random_rois(100, side=120, device=device)
    gradient = torch.randn(100, 20, 7, 7, device=device)

    def run():
        output = multiscale_roi_align(features, rois, 7, [0.25, 0.125], finest_scale=30.0)
        return torch.autograd.grad(output, features, gradient)

    plain = run()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = run(), run()
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b, c in zip(first, second, plain):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, atol=1e-4, rtol=1e-5)


@compiled
def test_threads_do_not_change_the_result():
    torch.manual_seed(10)
    feature = torch.randn(2, 40, 30, 30, requires_grad=True)
    rois = random_rois(50, side=120)
    gradient = torch.randn(50, 40, 7, 7)
    results, threads = [], torch.get_num_threads()
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        output = roi_align(feature, rois, 7, 0.25)
        results.append((output, torch.autograd.grad(output, feature, gradient)[0]))
    torch.set_num_threads(threads)
    for output, grad in results[1:]:
        assert torch.equal(output, results[0][0]) and torch.equal(grad, results[0][1])


@pytest.mark.parametrize('aligned, legacy', [(False, False), (True, False), (False, True)])
def test_fallback_gives_the_same(aligned, legacy):
    torch.manual_seed(11)
    features = [torch.randn(2, 5, s, s) for s in (32, 16)]
    rois = random_rois(40, side=128)
    rois[3, 2] = math.nan
    expected = multiscale_roi_align(features, rois, 7, [0.25, 0.125], 2, aligned, 30.0, legacy)
    output = _plain_roi_align(features, rois, [0.25, 0.125], 7, 7, 2, aligned, legacy, 30.0)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-5)


def test_the_same_for_torch_export(monkeypatch):
    torch.manual_seed(0)
    features = [torch.randn(2, 5, 64 // 2**level, 60 // 2**level) for level in range(4)]
    rois = random_rois(50)
    expected = multiscale_roi_align(features, rois, 7, SCALES)
    monkeypatch.setattr(torch.compiler, 'is_exporting', lambda: True, raising=False)
    torch.testing.assert_close(multiscale_roi_align(features, rois, 7, SCALES), expected, **BESIDE_TORCHVISION['cpu'])


@pytest.mark.slow
@compiled
def test_more_than_two_to_the_31_elements():
    """A map and an output past 2^31 elements: offsets are 64 bits wide."""
    feature = torch.zeros(1, 2, 46400, 46400 // 2, dtype=torch.bfloat16)
    feature[0, 1, -40:, -40:] = 1
    rois = torch.tensor([[0.0, 23160, 46360, 23200, 46400]])
    output = roi_align(feature, rois, 2, 1.0, 2, True)
    assert feature.numel() > 2**31
    assert output[0, 1].min() > 0.9 and not output[0, 0].any()
