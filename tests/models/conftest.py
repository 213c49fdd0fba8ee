"""The makers of tests/factories.py, for the tests of detectors."""

import factories
import pytest


@pytest.fixture
def small_cfg():
    """Function `cfg(kind, norm_cfg)` of a ResNet-18 detector with 64 channels and 3 classes."""
    return factories.two_stage_cfg


@pytest.fixture
def small_model(small_cfg):
    """Function `model(kind, norm_cfg)`, in training mode."""
    return lambda *args, **kwargs: factories.build(small_cfg(*args, **kwargs)).train()


@pytest.fixture
def make_data():
    """Function `data(counts)`: a batch with that many objects in each image."""
    return factories.batch
