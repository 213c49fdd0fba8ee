"""Backbones: images to feature maps."""

from mmdet.models.backbones.resnet import ResNet
from mmdet.models.backbones.resnext import ResNeXt

__all__ = ['ResNeXt', 'ResNet']
