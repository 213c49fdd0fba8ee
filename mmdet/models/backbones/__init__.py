"""Backbones: images to feature maps."""

from mmdet.models.backbones.resnet import ResNet
from mmdet.models.backbones.resnext import ResNeXt
from mmdet.models.backbones.ssd_vgg import SSDVGG
from mmdet.models.backbones.timm import TimmBackbone
from mmdet.models.backbones.torchvision import TorchvisionBackbone

__all__ = ['ResNeXt', 'ResNet', 'SSDVGG', 'TimmBackbone', 'TorchvisionBackbone']
