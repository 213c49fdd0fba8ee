"""Backbones: images to feature maps."""

from mmdet.models.backbones.resnet import ResNet, ResNeXt

__all__ = ['ResNeXt', 'ResNet']
