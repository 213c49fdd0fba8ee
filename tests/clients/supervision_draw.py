"""Detections drawn with supervision: python supervision_draw.py IMAGE OUT"""

import sys

import cv2
import supervision as sv

from mmdet.apis import inference_detector, init_detector

model = init_detector('config.py', 'weights.pth', device='cpu')
image = cv2.imread(sys.argv[1])
result = inference_detector(model, image)
detections = sv.Detections.from_mmdetection(result)
detections = detections[detections.confidence > 0.0].with_nms(threshold=0.9)
print(len(detections), detections.mask.shape, detections.mask.dtype)
names = model.dataset_meta['classes']
drawn = sv.MaskAnnotator().annotate(scene=image.copy(), detections=detections)
drawn = sv.BoxAnnotator().annotate(scene=drawn, detections=detections)
drawn = sv.LabelAnnotator().annotate(scene=drawn, detections=detections, labels=[names[i] for i in detections.class_id])
cv2.imwrite(sys.argv[2], drawn)
