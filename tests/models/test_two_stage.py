"""The two-stage detectors as a whole: losses, gradients, odd batches."""

import copy

import pytest
import torch

from mmdet.models.task_modules import RandomSampler

NORMS = [None, dict(type='BN'), dict(type='GN', num_groups=8), dict(type='CBN', buffer_num=3)]


def total(losses: dict) -> torch.Tensor:
    return sum(value for key, value in losses.items() if 'loss' in key)


def losses_of(model, data: dict) -> dict:
    return model(**model.data_preprocessor(data, True), mode='loss')


@pytest.mark.parametrize('norm_cfg', NORMS, ids=lambda n: n['type'] if n else 'none')
@pytest.mark.parametrize(
    'counts, ignored', [([3, 0], 0), ([0, 0], 0), ([0], 2), ([1], 1)], ids=['half', 'none', 'crowd', 'one']
)
def test_every_batch_gives_finite_losses_and_reaches_every_parameter(
    small_model, make_data, norm_cfg, counts, ignored
):
    model = small_model('mask', norm_cfg)
    losses = losses_of(model, make_data(counts, ignored=ignored))
    total(losses).backward()
    assert all(torch.isfinite(value).all() for value in losses.values())
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    if sum(counts) == 0:
        # Nothing to find: objectness and class are still learned, boxes and masks are not.
        assert losses['loss_rpn_cls'] > 0 and losses['loss_cls'] > 0
        assert losses['loss_rpn_bbox'] == losses['loss_bbox'] == losses['loss_mask'] == 0
    else:
        assert losses['loss_rpn_bbox'] > 0 and losses['loss_bbox'] > 0 and losses['loss_mask'] > 0


def test_loss_falls_on_one_batch(small_model, make_data):
    model = small_model('mask', dict(type='CBN', buffer_num=3, burnin_iters=5))
    data = make_data([3, 2])
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    history = []
    for _ in range(12):
        loss = total(losses_of(model, data))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 35)
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.7 * history[0]


def test_two_single_images_give_the_gradient_of_their_batch(small_model, make_data, monkeypatch):
    """What data-parallel training relies on. BatchNorm is frozen and the sampler takes the first boxes, so that both
    ways see the same RoIs."""
    monkeypatch.setattr(RandomSampler, 'random_choice', staticmethod(lambda indices, count: indices[:count]))
    model = small_model('faster').double()  # in float32 proposals of nearly equal score change places
    data = make_data([3, 2])
    total(losses_of(model, data)).backward()
    together = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for index in range(2):
        total(losses_of(model, {key: value[index : index + 1] for key, value in data.items()})).div(2).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, together[name], atol=1e-9, rtol=1e-6, msg=name)


def test_prediction_has_original_pixels_and_rle_of_original_size(small_model, make_data):
    model = small_model('mask').eval()
    model.roi_head.test_cfg.score_thr = 0.0
    data = make_data([1])
    data['data_samples'][0].set_metainfo(dict(ori_shape=(48, 64), scale_factor=(2.0, 2.0)))
    with torch.no_grad():
        (sample,) = model.test_step(data)
    found = sample.pred_instances
    assert 0 < len(found) <= 100
    assert found.bboxes.min() >= 0 and found.bboxes[:, 2].max() <= 64 and found.bboxes[:, 3].max() <= 48
    assert all(mask['size'] == [48, 64] for mask in found.masks)
    assert (found.scores[:-1] >= found.scores[1:]).all()


def test_missing_mask_head_is_named(small_cfg):
    from mmdet.registry import MODELS

    cfg = small_cfg('faster')
    cfg.type = 'MaskRCNN'
    with pytest.raises(ValueError, match='no mask_head'):
        MODELS.build(cfg)


@pytest.mark.parametrize('kind', ['mask', 'faster'])
def test_detections_can_stay_in_pixels_of_the_input(small_model, make_data, kind):
    """mmdetection's `rescale`."""
    model = small_model(kind).eval()
    data = make_data([2])
    data['data_samples'][0].set_metainfo(dict(scale_factor=(2.0, 2.0), ori_shape=(32, 48)))
    inputs, samples = model.data_preprocessor(data, False).values()
    with torch.no_grad():
        original = model.predict(inputs, copy.deepcopy(samples))[0].pred_instances
        scaled = model.predict(inputs, copy.deepcopy(samples), rescale=False)[0].pred_instances
    assert len(original) > 0
    torch.testing.assert_close(scaled.scores, original.scores)
    torch.testing.assert_close(scaled.bboxes, original.bboxes * 2)
    if kind == 'mask':
        assert scaled.masks[0]['size'] == [*samples[0].img_shape[:2]] and original.masks[0]['size'] == [32, 48]
