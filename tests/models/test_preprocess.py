"""`DetDataPreprocessor` against normalising, padding and stacking image by image."""

import pytest
import torch
import torch.nn.functional as F

from mmdet.models.data_preprocessor import DetDataPreprocessor
from mmdet.structures import DetDataSample

OPTIONS = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], pad_size_divisor=32)
META = dict(img_shape=(9, 9), ori_shape=(9, 9), scale_factor=(1.0, 1.0))


@pytest.mark.parametrize('options', [{}, dict(bgr_to_rgb=True), dict(pad_value=1.5)])
@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32])
def test_one_batch_equals_padded_images_to_the_bit(options, dtype, device):
    preprocess = DetDataPreprocessor(**OPTIONS, **options).to(device)
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8).to(dtype) for h, w in ((40, 70), (64, 33))]
    samples = [DetDataSample(metainfo=META), DetDataSample(metainfo=META)]
    batch = preprocess(dict(inputs=images, data_samples=samples))['inputs']
    expected = []
    for image in images:
        image = image.to(device).flip(0) if options.get('bgr_to_rgb') else image.to(device)
        image = (image.float() - preprocess.mean) / preprocess.std
        padding = (0, 96 - image.shape[2], 0, 64 - image.shape[1])
        expected.append(F.pad(image, padding, value=options.get('pad_value', 0.0)))
    assert torch.equal(batch, torch.stack(expected)) and batch.is_contiguous()
    assert all(sample.batch_input_shape == (64, 96) for sample in samples)
    one = preprocess(dict(inputs=images[:1]))['inputs']  # padded to a size of its own
    assert torch.equal(preprocess.prepared(images[0].to(device)), one)


@pytest.mark.parametrize('cast, dtype', [('double', torch.float64), ('half', torch.float32)])
def test_precision_follows_the_model(cast, dtype):
    preprocess = getattr(DetDataPreprocessor(**OPTIONS), cast)()
    assert preprocess(dict(inputs=[torch.zeros(3, 8, 8, dtype=torch.uint8)]))['inputs'].dtype == dtype


def test_a_grey_image_needs_a_mean_of_one_value():
    grey = dict(inputs=[torch.full((1, 2, 2), 9, dtype=torch.uint8)], data_samples=None)
    assert (DetDataPreprocessor([1.0], [2.0])(grey)['inputs'] == 4).all()
    assert (DetDataPreprocessor()(grey)['inputs'] == 9).all()
    with pytest.raises(ValueError, match='3 values of mean, an image has 1 channel'):
        DetDataPreprocessor([1.0, 2, 3], [2.0, 2, 2])(grey)
    with pytest.raises(ValueError, match='3 values of mean, an image has 4 channel'):
        DetDataPreprocessor([1.0, 2, 3], [2.0, 2, 2])(dict(inputs=[torch.zeros(4, 2, 2)], data_samples=None))


def test_what_a_sample_lacks_is_named():
    sample = DetDataSample(metainfo=dict(META, img_id=3))
    del sample.scale_factor
    data = dict(inputs=[torch.zeros(3, 9, 9)], data_samples=[sample])
    with pytest.raises(ValueError, match='lacks scale_factor; name it in meta_keys of PackDetInputs'):
        DetDataPreprocessor()(data)
    assert DetDataPreprocessor()(data, training=True)['inputs'].shape == (1, 3, 9, 9)
