"""NMS against torchvision and slow references."""

import math

import pytest
import torch
import torchvision
from torch.library import opcheck

from mmdet.ops import COMPILED, apply_nms, batched_nms, nms, soft_nms
from mmdet.ops.library import serves
from mmdet.ops.nms import _METHODS, _plain_soft_nms

compiled = pytest.mark.skipif(not COMPILED, reason='the compiled ops are missing')


def random_case(seed, largest=300):
    """Boxes with ties in score, duplicates, touching and degenerate ones."""
    torch.manual_seed(seed)
    count = int(torch.randint(0, largest, ()))
    sides = torch.empty(count, 2).uniform_(-0.5, 4.5).exp()
    corner = torch.rand(count, 2) * 100
    boxes = torch.cat([corner, corner + sides], 1)
    scores = torch.rand(count)
    if seed % 2:  # whole numbers touch and coincide; few distinct scores
        boxes, scores = boxes.round(), (scores * 8).round() / 8
    if seed % 5 == 0 and count:
        boxes[::7, 2:] = boxes[::7, :2]  # no area
        boxes[::11, 2] -= 30  # inside out
    return boxes, scores, torch.randint(0, 6, (count,)), float(torch.rand(()))


def slow_iou(a, b, offset):
    dx = max(min(a[2], b[2]) - max(a[0], b[0]) + offset, 0)
    dy = max(min(a[3], b[3]) - max(a[1], b[1]) + offset, 0)
    area = [(x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b)]
    union = area[0] + area[1] - dx * dy
    return dx * dy / union if union else 0.0


def slow_soft_nms(boxes, scores, threshold, sigma, min_score, method, offset, idxs):
    """The definition, box after box, in Python's float64."""
    boxes, left, keep = boxes.tolist(), scores.tolist(), []
    alive = {i for i, s in enumerate(left) if s >= min_score}
    while alive:
        best = min(alive, key=lambda i: (-left[i], -scores[i].item(), i))
        keep.append((best, left[best]))
        alive.remove(best)
        for i in list(alive):
            if idxs is not None and idxs[i] != idxs[best]:
                continue
            iou = slow_iou(boxes[best], boxes[i], offset)
            if method == 'gaussian':
                left[i] *= math.exp(-iou * iou / sigma)
            elif iou > threshold:
                left[i] *= 1 - iou if method == 'linear' else 0
            if left[i] < min_score or (method == 'naive' and left[i] == 0):
                alive.remove(i)
    return keep


@pytest.mark.parametrize('block', range(10))
def test_nms_keeps_torchvisions_rows(device, block):
    for seed in range(block * 100, block * 100 + 100):
        boxes, scores, _, threshold = random_case(seed)
        expected = torchvision.ops.nms(boxes, scores, threshold)
        assert torch.equal(nms(boxes.to(device), scores.to(device), threshold).cpu(), expected), seed


@pytest.mark.parametrize('block', range(10))
def test_batched_nms_keeps_torchvisions_rows(device, block):
    for seed in range(block * 100, block * 100 + 100):
        boxes, scores, idxs, threshold = random_case(seed)
        keep = batched_nms(boxes.to(device), scores.to(device), idxs.to(device), threshold).cpu()
        expected = torchvision.ops.boxes._batched_nms_vanilla(boxes, scores, idxs, threshold)
        # torchvision's last sort is not stable; ours gives ties to the lower row
        expected = expected.sort()[0]
        expected = expected[scores[expected].argsort(descending=True, stable=True)]
        assert torch.equal(keep, expected), seed


def test_large_inputs_take_all_threads(device):
    torch.manual_seed(0)
    corner = torch.rand(4000, 2) * 600
    boxes = torch.cat([corner, corner + torch.empty(4000, 2).uniform_(1, 5).exp()], 1)
    scores = torch.rand(4000)
    for threshold in (0.3, 0.7):
        expected = torchvision.ops.nms(boxes, scores, threshold)
        for dtype in (torch.float32, torch.float64):
            keep = nms(boxes.to(device, dtype), scores.to(device), threshold).cpu()
            assert torch.equal(keep, expected if dtype == torch.float32 else torchvision.ops.nms(
                boxes.double(), scores.double(), threshold))


def test_classes_may_be_any_integers(device):
    boxes, scores, idxs, _ = random_case(3)
    expected = batched_nms(boxes, scores, idxs, 0.3)
    values = torch.tensor([-2**62, -1, 0, 7, 10**6, 2**62])
    keep = batched_nms(boxes.to(device), scores.to(device), values[idxs].to(device), 0.3)
    assert torch.equal(keep.cpu(), expected)
    assert torch.equal(batched_nms(boxes.to(device), scores.to(device), idxs.to(device).int(), 0.3).cpu(), expected)


def test_classes_are_separate_however_large_the_coordinates(device):
    """With coordinate offsets of class * max the second class's boxes would be rounded to one box."""
    boxes = torch.tensor([[0.0, 0, 1e7, 1e7], [0, 0, 1, 1], [2, 0, 3, 1]], device=device)
    scores, idxs = torch.tensor([0.9, 0.8, 0.7], device=device), torch.tensor([0, 79, 79], device=device)
    assert batched_nms(boxes, scores, idxs, 0.5).tolist() == [0, 1, 2]


def test_the_same_for_torch_export(monkeypatch):
    """Classes stand in fields of one image there: with 80 of them, negative corners, or no box at all."""
    cases = [random_case(seed) for seed in range(0, 40, 2)]
    for boxes, scores, _, threshold in cases:
        idxs = torch.randint(0, 80, (len(boxes),))
        expected = batched_nms(10 * boxes - 300, scores, idxs, threshold)
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, 'is_exporting', lambda: True, raising=False)
            assert batched_nms(10 * boxes - 300, scores, idxs, threshold).tolist() == expected.tolist()
    assert min(len(boxes) for boxes, *_ in cases) < 20 < max(len(boxes) for boxes, *_ in cases)
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, 'is_exporting', lambda: True, raising=False)
        assert batched_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long), 0.5).shape == (0,)


def test_legacy_widths(device):
    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 4], [5, 0, 14, 9]], device=device)
    scores = torch.tensor([0.9, 0.8, 0.7], device=device)
    # with + 1: IoU(0, 1) = 50 / 100, not above 0.5; without: 36 / 81
    for offset, threshold in ((1.0, 0.49), (1.0, 0.5), (0.0, 0.44), (0.0, 0.45)):
        iou = slow_iou(boxes[0].tolist(), boxes[1].tolist(), offset)
        expected = [0, 2] if iou > threshold else [0, 1, 2]
        assert nms(boxes, scores, threshold, offset).tolist() == expected
    assert soft_nms(boxes, scores, 0.49, offset=1.0)[1].tolist() == pytest.approx([0.9, 0.7, 0.4])


def test_ties_go_to_the_lower_row(device):
    boxes = torch.tensor([[0.0, 0, 10, 10]], device=device).repeat(5, 1)
    boxes[3] += 100
    scores = torch.full((5,), 0.5, device=device)
    assert nms(boxes, scores, 0.5).tolist() == [0, 3]
    assert batched_nms(boxes, scores, torch.tensor([1, 0, 0, 0, 1], device=device), 0.5).tolist() == [0, 1, 3]
    assert soft_nms(boxes, scores, method='naive', iou_threshold=0.5)[0].tolist() == [0, 3]


@pytest.mark.parametrize('method', sorted(_METHODS))
@pytest.mark.parametrize('offset', [0.0, 1.0])
@pytest.mark.parametrize('classes', [False, True])
def test_soft_nms_equals_slow_loop(device, method, offset, classes):
    for seed in range(0, 40, 4):  # even: no exact ties, whose order would hang on the last bit
        boxes, scores, idxs, threshold = random_case(seed, largest=60)
        idxs = idxs if classes else None
        expected = slow_soft_nms(boxes.double(), scores.double(), threshold, 0.5, 0.05, method, offset, idxs)
        for dtype in (torch.float32, torch.float64):
            keep, kept = soft_nms(boxes.to(device, dtype), scores.to(device, dtype), threshold, 0.5, 0.05, method,
                                  offset, None if idxs is None else idxs.to(device))
            assert keep.tolist() == [i for i, _ in expected], (seed, dtype)
            torch.testing.assert_close(kept.cpu().double(), torch.tensor([s for _, s in expected], dtype=torch.float64),
                                       atol=1e-5, rtol=1e-4)


def test_soft_nms_fallback_gives_the_same():
    for seed in range(0, 20, 2):
        boxes, scores, idxs, threshold = random_case(seed, largest=60)
        for method, number in _METHODS.items():
            keep, kept = soft_nms(boxes, scores, threshold, 0.5, 0.05, method, idxs=idxs)
            plain, plain_scores = _plain_soft_nms(boxes, scores, idxs, threshold, 0.5, 0.05, number, 0.0)
            assert torch.equal(keep, plain)
            torch.testing.assert_close(kept, plain_scores)


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf, 1e38])
def test_wild_boxes(device, value):
    boxes, scores, idxs, _ = random_case(2)
    boxes[::3, 1], boxes[1::5], scores[4] = value, value, math.nan
    for kept in (nms(boxes.to(device), scores.to(device), 0.5),
                 batched_nms(boxes.to(device), scores.to(device), idxs.to(device), 0.5),
                 soft_nms(boxes.to(device), scores.to(device), 0.5)[0]):
        assert kept.unique().numel() == kept.numel() and kept.min() >= 0 and kept.max() < len(boxes)
    if device == 'cpu':
        assert torch.equal(nms(boxes, scores, 0.5), torchvision.ops.nms(boxes, scores, 0.5))


def test_empty_and_non_contiguous(device):
    none = torch.zeros(0, 4, device=device)
    assert nms(none, none[:, 0], 0.5).shape == (0,) and nms(none, none[:, 0], 0.5).dtype == torch.long
    assert batched_nms(none, none[:, 0], none[:, 0].long(), 0.5).shape == (0,)
    assert [t.shape for t in soft_nms(none, none[:, 0])] == [(0,), (0,)]
    boxes, scores, idxs, _ = random_case(1)
    wide = torch.stack([boxes, boxes * 0], 2).to(device)[..., 0]
    spread = torch.stack([scores, scores], 1).to(device)[:, 0]
    assert not wide.is_contiguous() and not spread.is_contiguous()
    assert torch.equal(nms(wide, spread, 0.4).cpu(), nms(boxes, scores, 0.4))
    half = nms(boxes.to(device).half(), scores.to(device).half(), 0.4)
    assert torch.equal(half.cpu(), nms(boxes.half().float(), scores.half().float(), 0.4))


@pytest.mark.parametrize('case, message', [
    (lambda b, s, c: nms(b[:, :3], s, 0.5), r'boxes must be \(B, 4\)'),
    (lambda b, s, c: nms(b, s[1:], 0.5), r'scores must be \(3,\)'),
    (lambda b, s, c: nms(b, s[:, None], 0.5), r'scores must be \(3,\)'),
    (lambda b, s, c: nms(b.long(), s, 0.5), 'floating point'),
    (lambda b, s, c: nms(b, s.to('meta'), 0.5), 'scores are on meta'),
    (lambda b, s, c: batched_nms(b, s, c[1:], 0.5), r'idxs must be \(3,\)'),
    (lambda b, s, c: soft_nms(b, s, method='cubic'), "got 'cubic'"),
    (lambda b, s, c: soft_nms(b, s, sigma=0), 'sigma must be above 0'),
    (lambda b, s, c: apply_nms(b, s, c, None), 'nms=None is not supported'),
    (lambda b, s, c: apply_nms(b, s, c, dict(type='fast_nms')), "got 'fast_nms'"),
    (lambda b, s, c: apply_nms(b, s, c, dict(type='nms')), 'iou_threshold is missing'),
    (lambda b, s, c: apply_nms(b, s, c, dict(type='nms', iou_treshold=0.5)), 'does not know iou_treshold'),
    (lambda b, s, c: apply_nms(b, s, c, dict(type='nms', iou_threshold=0.5, sigma=1)), 'does not know sigma'),
])
def test_wrong_input_has_one_clear_message(case, message):
    with pytest.raises(ValueError, match=message):
        case(torch.zeros(3, 4), torch.zeros(3), torch.zeros(3, dtype=torch.long))


def test_apply_nms_reads_configs(device):
    boxes, scores, idxs, _ = random_case(4)
    boxes, scores, idxs = boxes.to(device), scores.to(device), idxs.to(device)
    keep, kept = apply_nms(boxes, scores, idxs, dict(type='nms', iou_threshold=0.3))
    assert torch.equal(keep, batched_nms(boxes, scores, idxs, 0.3)) and torch.equal(kept, scores[keep])
    assert torch.equal(apply_nms(boxes, scores, idxs, dict(iou_thr=0.3, max_num=3))[0], keep[:3])
    agnostic = apply_nms(boxes, scores, idxs, dict(type='nms', iou_threshold=0.3, class_agnostic=True))[0]
    assert torch.equal(agnostic, nms(boxes, scores, 0.3)) and len(agnostic) < len(keep)
    soft = dict(type='soft_nms', iou_threshold=0.3, min_score=0.05, method='gaussian')
    keep, kept = apply_nms(boxes, scores, idxs, soft)
    expected = soft_nms(boxes, scores, 0.3, min_score=0.05, method='gaussian', idxs=idxs)
    assert torch.equal(keep, expected[0]) and torch.equal(kept, expected[1])
    assert (kept[1:] <= kept[:-1]).all()


@compiled
def test_opcheck_and_compile(device):
    boxes, scores, idxs, _ = (x.to(device) if isinstance(x, torch.Tensor) else x for x in random_case(6))
    if not serves(boxes):
        pytest.skip('the CUDA kernels are not compiled')
    opcheck(torch.ops.mmdet.nms, (boxes, scores, idxs, 0.5, 0.0))
    opcheck(torch.ops.mmdet.nms, (boxes, scores, None, 0.5, 0.0))
    opcheck(torch.ops.mmdet.soft_nms, (boxes, scores, idxs, 0.5, 0.5, 1e-3, 1, 0.0))

    def function(b, s):
        return b[nms(b, s, 0.5)] * 2

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        fast = torch.compile(function, backend='aot_eager', fullgraph=True)
        assert torch.equal(fast(boxes, scores), function(boxes, scores))
