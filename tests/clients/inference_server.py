"""A server that is sent images and answers with boxes, as annotation back-ends have one."""

import json
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import cv2
import numpy as np

from mmdet.apis import inference_detector, init_detector
from mmdet.utils import register_all_modules

register_all_modules()
model = init_detector('config.py', 'weights.pth', palette='coco', device='cpu')
names = model.dataset_meta['classes']


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        sent = self.rfile.read(int(self.headers['Content-Length']))
        image = cv2.imdecode(np.frombuffer(sent, np.uint8), cv2.IMREAD_COLOR)
        found = inference_detector(model, image).pred_instances
        height, width = image.shape[:2]
        answer = []
        for box, label, score in zip(found.bboxes.cpu().numpy(), found.labels.cpu().numpy(), found.scores.tolist()):
            x1, y1, x2, y2 = (box / (width, height, width, height) * 100).tolist()
            answer.append(dict(x=x1, y=y1, width=x2 - x1, height=y2 - y1, label=names[label], score=score))
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


with HTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with open(sys.argv[1], 'rb') as file:
        request = urllib.request.Request(f'http://127.0.0.1:{server.server_port}', file.read())
    print(json.dumps(json.load(urllib.request.urlopen(request))))
    server.shutdown()
